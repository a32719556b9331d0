"""Bundles and user snapshots: read, verified and mapped. Knows nothing of gRPC or asyncio."""
