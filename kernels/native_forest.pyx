"""Forests compiled by TL2cgen, called without its Python package; see native_forest.pyi for the public API.

The generated code is one C function over one row:

    union Entry { int missing; double fvalue; int qvalue; };
    void predict(union Entry *row, int pred_margin, double *result);      adds to result[0]

An entry is missing where `missing` is -1, so a double whose low 32 bits are all set would be taken for missing. Values
that come from float32 have at least 29 zero bits there and are safe.
"""

import os
import shutil

import numpy as np

from libc.math cimport fabs, trunc
from libc.stdint cimport int32_t, uint8_t

from recserve.kernels._arrays import check_array
from recserve.kernels.limits import LARGEST_EXACT_INTEGER

cdef extern from "<unistd.h>":
    int close(int descriptor)

cdef extern from "<dlfcn.h>":
    void* dlopen(const char* path, int mode)
    void* dlsym(void* library, const char* symbol)
    int dlclose(void* library)
    char* dlerror()
    enum:
        RTLD_NOW
        RTLD_LOCAL

cdef union Entry:
    int missing
    double fvalue
    int qvalue

ctypedef void (*predict_function)(Entry* row, int pred_margin, double* result) noexcept nogil
ctypedef int32_t (*count_function)() noexcept
ctypedef void (*counts_function)(int32_t* out) noexcept
ctypedef const char* (*name_function)() noexcept

cdef enum Rule:
    # How a value of a feature becomes an entry.
    NUMBER = 0
    NUMBER_NAN_IS_ZERO = 1
    CATEGORY = 2

# LightGBM's kZeroThreshold (1e-35 as float32): its predictor reads what is not larger in magnitude as 0.
cdef double ZERO_THRESHOLD = <float>1e-35
# Generated code compares categories up to here.
cdef double LARGEST_CATEGORY = LARGEST_EXACT_INTEGER


cdef class NativeForest:
    """A loaded forest; see native_forest.pyi."""

    cdef int descriptor
    cdef void* library
    cdef predict_function predict
    cdef const uint8_t[::1] rules
    cdef readonly object path
    cdef readonly int features

    def __cinit__(self, path, int features, nan_to_zero=(), categorical=()):
        self.descriptor = -1
        self.path = os.fspath(path)
        self.features = features
        self.rules = rules_of(features, nan_to_zero, categorical)
        # dlopen answers a name or an inode that it has seen with the library loaded then, even where the file has been
        # replaced since. A copy in memory of its own is never mistaken, and cannot change under the running code.
        self.descriptor = os.memfd_create("forest")
        copy(path, self.descriptor)
        self.library = dlopen(f"/proc/self/fd/{self.descriptor}".encode(), RTLD_NOW | RTLD_LOCAL)
        if self.library == NULL:
            raise OSError(f"{self.path} cannot be loaded: {os.fsdecode(dlerror())}")
        self.predict = <predict_function>self.symbol(b"predict")
        self.check()

    def __dealloc__(self):
        if self.library != NULL:
            dlclose(self.library)
        if self.descriptor >= 0:
            close(self.descriptor)

    cdef void* symbol(self, bytes name) except NULL:
        cdef void* found = dlsym(self.library, name)
        if found == NULL:
            raise ValueError(
                f"{self.path}: expected a forest compiled by TL2cgen 1.0, but there is no symbol {name.decode()!r}"
            )
        return found

    cdef check(self):
        """Refuse a library whose `predict` is not the function that `margins` calls."""
        cdef int32_t classes = 0
        self.expect("targets", (<count_function>self.symbol(b"get_num_target"))(), 1)
        (<counts_function>self.symbol(b"get_num_class"))(&classes)  # one number per target
        self.expect("outputs", classes, 1)
        self.expect("features", (<count_function>self.symbol(b"get_num_feature"))(), self.features)
        self.expect("threshold type", (<name_function>self.symbol(b"get_threshold_type"))().decode(), "float64")
        self.expect("leaf type", (<name_function>self.symbol(b"get_leaf_output_type"))().decode(), "float64")

    cdef expect(self, what, found, expected):
        if found != expected:
            raise ValueError(f"{self.path}: {what}: expected {expected}, found {found}")

    def margins(self, features):
        """Sum the trees' leaves for each row; see native_forest.pyi."""
        check_array("features", features, np.float32, (None, self.features))
        margins = np.zeros(len(features), np.float64)
        entries = np.empty(self.features, np.float64)
        cdef const float[:, ::1] rows = features
        cdef double[::1] margins_view = margins, entries_view = entries
        cdef Entry* row = <Entry*>&entries_view[0]
        cdef Py_ssize_t i
        with nogil:
            for i in range(rows.shape[0]):
                enter(&rows[i, 0], &self.rules[0], self.features, row)
                self.predict(row, 1, &margins_view[i])
        return margins


def copy(path, descriptor):
    """Write the file's bytes to a descriptor."""
    with open(path, "rb") as source, open(descriptor, "wb", closefd=False) as target:
        shutil.copyfileobj(source, target)


def rules_of(features, nan_to_zero, categorical):
    """The rule of each feature, as bytes; refuses lists that do not fit the features or one another."""
    if features < 1:
        raise ValueError(f"features: expected at least 1, found {features}")
    rules = np.full(features, NUMBER, np.uint8)
    listed = (("nan_to_zero", nan_to_zero, NUMBER_NAN_IS_ZERO), ("categorical", categorical, CATEGORY))
    for name, columns, rule in listed:
        for column in columns:
            if not 0 <= column < features:
                raise ValueError(f"{name}: {column} is not one of the {features} features")
            if rules[column] != NUMBER:
                raise ValueError(f"{name}: feature {column} is listed twice")
            rules[column] = rule
    return rules


cdef inline void enter(const float* values, const uint8_t* rules, Py_ssize_t n, Entry* row) noexcept nogil:
    """Write a row's values as LightGBM reads them."""
    cdef Py_ssize_t i
    cdef double value
    for i in range(n):
        value = values[i]
        if rules[i] == CATEGORY:
            value = trunc(value)
            if 0 <= value <= LARGEST_CATEGORY:
                row[i].fvalue = value
            else:
                row[i].missing = -1  # NaN, negative and huge categories are in no set
        elif value != value:
            if rules[i] == NUMBER_NAN_IS_ZERO:
                row[i].fvalue = 0.0
            else:
                row[i].missing = -1
        else:
            row[i].fvalue = value if fabs(value) > ZERO_THRESHOLD else 0.0
