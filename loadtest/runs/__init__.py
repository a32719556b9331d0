"""What is done with a generator and a target: one rate, a sweep, capacity, soak, saturation, and comparisons."""
