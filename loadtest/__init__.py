"""Measures kernels and servers; every result is JSON with the hardware, the versions and the runs it came from."""
