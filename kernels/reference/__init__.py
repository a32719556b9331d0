"""The kernels once more in plain Python and NumPy, with the same signatures.

They are written to be read and obviously right, not to be fast, and they check nothing: the tests run one suite over
both and expect the same bits. The feature program's reference stands beside it, in recserve.kernels.features.reference.
"""
