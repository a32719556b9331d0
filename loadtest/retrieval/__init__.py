"""Times nearest-neighbour search beside other libraries, at the recall that each reaches."""
