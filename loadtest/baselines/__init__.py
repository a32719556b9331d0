"""The straightforward service: what a competent engineer writes in a day for the models of a reference workload.

    users -> onnxruntime -> FAISS -> features in NumPy -> LightGBM -> caps and MMR in NumPy

It reads the arrays of the workload's bundle and snapshot, and none of our kernels or stages answers its requests. It is
meant well: an index that is tuned to at least the recall of ours, vectorised code, whatever can be computed at the
start is computed there, and one thread, as it has one core. `grpc_server` and `http_server` put it behind gRPC and
HTTP.
"""
