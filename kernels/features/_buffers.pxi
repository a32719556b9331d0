# Memory of a call: arrays as they are taken from Python, without an object for each, and room to write.
# Included by _program.pyx.

from cpython.buffer cimport PyBUF_RECORDS_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc


cdef enum Kind:
    FLOAT32
    FLOAT64
    INT32
    INT64
    FLAG                    # bool or uint8

cdef enum:
    ANY = -1                # any length
    NO_AXIS = -2            # an array of one axis has no columns

cdef type ndarray = np.ndarray


class Misfit(Exception):
    """An array is not as the schema asks. InputChecks finds out which and says so."""


cdef class Room:
    """Uninitialised memory."""

    cdef void *start

    def __cinit__(self, Py_ssize_t size):
        self.start = PyMem_Malloc(size)
        if self.start == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.start)


cdef class Buffers:
    """Arrays whose memory stays where it is until this object goes."""

    cdef Py_buffer *held
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    def __cinit__(self, Py_ssize_t capacity):
        self.capacity = capacity
        self.held = <Py_buffer *>PyMem_Malloc(capacity * sizeof(Py_buffer))
        if self.held == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            PyBuffer_Release(&self.held[i])
        PyMem_Free(self.held)

    cdef Py_buffer *take(self, array, Kind kind, Py_ssize_t rows, Py_ssize_t columns=NO_AXIS) except NULL:
        """Hold an array.

        Raises:
            Misfit: `check_array` would refuse it.
            IndexError: there is no capacity left, which is a bug.
        """
        cdef Py_buffer *buffer = &self.held[self.count]
        if self.count == self.capacity:
            raise IndexError(f"more than {self.capacity} arrays")
        if not isinstance(array, ndarray):
            raise Misfit
        try:
            PyObject_GetBuffer(array, buffer, PyBUF_RECORDS_RO)
        except (BufferError, ValueError):  # a dtype that buffers cannot express
            raise Misfit from None
        self.count += 1
        if not (is_of(buffer, kind) and is_shaped(buffer, rows, columns) and PyBuffer_IsContiguous(buffer, b"C")):
            raise Misfit
        return buffer


cdef bint is_of(const Py_buffer *buffer, Kind kind) noexcept:
    """Whether the elements are of this kind. NumPy marks another byte order, or addresses that are not aligned."""
    cdef const char *format = buffer.format
    if format[0] == 0 or format[1] != 0:
        return False
    if kind == FLOAT32:
        return format[0] == b"f"
    if kind == FLOAT64:
        return format[0] == b"d"
    if kind == FLAG:
        return format[0] == b"?" or format[0] == b"B"
    # Several C types may have one size.
    return format[0] in b"ilq" and buffer.itemsize == (4 if kind == INT32 else 8)


cdef bint is_shaped(const Py_buffer *buffer, Py_ssize_t rows, Py_ssize_t columns) noexcept:
    if buffer.ndim != (1 if columns == NO_AXIS else 2) or (rows != ANY and buffer.shape[0] != rows):
        return False
    return columns < 0 or buffer.shape[1] == columns
