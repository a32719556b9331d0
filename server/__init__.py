"""The server: bundles, the pipeline, user state, gRPC, and the life of the process."""
