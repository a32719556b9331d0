"""Times exact forests beside other engines."""
