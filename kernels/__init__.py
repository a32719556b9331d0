"""Kernels: the loops of a request, in Cython and C, without the GIL. Nothing here imports the rest of recserve.

    ids            item and user keys -> rows, in a hash table of mapped arrays
    vectors        exact inner products, search and top k over mapped vectors
    ivf            inverted lists of 4-bit codes, searched and re-scored from the vectors
    bitmaps        sets of item rows, 64 to a word
    filters        conditions on columns as bitmaps: codes, ranges, flags, lists
    features       the feature program: from items, user, context and history to the ranker's columns
    forest         exact forests, one bit per row
    native_forest  forests that TL2cgen compiled to a shared library
    rerank         calibration, freshness, caps and MMR
    limits         what callers have to keep to
    reference      the same functions in NumPy, deliberately plain: the oracle of the tests, and the definition to read

A call goes through three layers:

    caller ──> def function in *.pyx          dtype, shape, contiguity and ranges are checked, results and scratch
               (types and contract in *.pyi)  allocated: the only place where Python objects are touched
                 └─> with nogil: loops        on pointers and const views; nothing is checked or allocated again
                       └─> include/*.h        C that has variants by instruction set

**Validation.** Kernels take arrays exactly as they are and never convert: another dtype is a TypeError, another shape,
layout or range a ValueError, and both name the argument. Inputs may be read-only and memory-mapped. Each function's
docstring says what is trusted instead, because checking it would cost as much as the work. `features`, which takes
dozens of arrays, has a compiled look at them and asks Python only for the words of a refusal.

**Dispatch.** Extensions are compiled for the architecture's baseline, so that one build runs everywhere. Where wider
registers pay, a header under include/ compiles one body several times and the variant is chosen when the module is
imported: the widest that the CPU has, or the one that the environment variable RECSERVE_CPU names ("portable", "avx2",
"avx512"). All variants give the same bits: the order of floating-point operations is written down in the header, and
nothing may contract or reorder it.

**Threads.** Functions keep no state between calls, so any number of threads may call them at once, on shared inputs.

Import the module that you need; the package itself loads no extension.
"""
