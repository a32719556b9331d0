"""The compiled client; see client.pyi for the public API, and loadtest/include/h2.h for the protocol."""

import numpy as np

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from recserve.kernels._arrays import check_array


cdef extern from "poll.h":
    struct pollfd:
        pass


cdef extern from "sys/socket.h":
    struct sockaddr:
        pass
    struct sockaddr_storage:
        pass
    ctypedef uint32_t socklen_t
    int getpeername(int, sockaddr*, socklen_t*)


cdef extern from "open_loop.h":
    enum:
        H2_CALLS
        H2_IN
        H2_SECTION
        HPACK_TEXT
        OUTCOMES_ "OUTCOMES"
    ctypedef struct h2_kind:
        const uint8_t* headers
        uint32_t headers_size, min_items, degraded_field, times_field
        int64_t timeout_ns
    ctypedef struct h2_work:
        const h2_kind* kinds
        const uint8_t* messages
        const int64_t* message_offsets
        const int32_t* message_kinds
        const int32_t* message
        int64_t requests
        int64_t* due
        int64_t* sent
        int64_t* done
        int16_t* outcome
        uint8_t* flags
        int32_t* items
        uint8_t* times
        int64_t times_every
        char* texts
    ctypedef struct h2_connection:
        int64_t open
        int draining
        const char* error
        size_t in_size, out_size, out_start
        uint8_t* in_ "in"
        uint8_t* out
    ctypedef struct loop_peer:
        h2_connection h2
        int fd
        int connecting
        int64_t retry_ns
    ctypedef struct loop_state:
        loop_peer* peers
        pollfd* polled
        int32_t connections, turn
        sockaddr_storage address
        socklen_t address_size
        h2_work* work
        int64_t next, outstanding, end_ns
        const int32_t* stop
        const char* error
    void hpack_prepare() nogil
    void h2_open(h2_connection*, const h2_work*) nogil
    int h2_begin(h2_connection*, int64_t, int64_t) nogil
    void h2_feed(h2_connection*, int64_t) nogil
    int loop_run(loop_state*, int64_t) nogil


CALLS_PER_CONNECTION = H2_CALLS
TEXT_BYTES = HPACK_TEXT
TIMES_BYTES = H2_SECTION
OUTCOMES = OUTCOMES_
ENDS = ("done", "stopped", "gone")

hpack_prepare()


cdef class Calls:
    """Requests and their record; see client.pyi."""

    cdef h2_work work
    cdef h2_kind* kinds
    cdef int64_t kinds_size
    cdef object requests, record, headers
    cdef const int32_t* stop

    def __cinit__(self, requests, record):
        check_requests(requests)
        check_record(record, len(requests.message))
        self.requests = requests
        self.record = record
        self.headers = [kind.headers for kind in requests.kinds]
        self.kinds_size = len(requests.kinds)
        self.kinds = <h2_kind*>calloc(self.kinds_size, sizeof(h2_kind))
        if self.kinds is NULL:
            raise MemoryError()
        for index, kind in enumerate(requests.kinds):
            self._set_kind(index, kind)
        self._set_requests()
        self._set_record()

    cdef void _set_kind(self, int64_t index, kind):
        cdef bytes headers = self.headers[index]
        self.kinds[index].headers = <const uint8_t*>headers
        self.kinds[index].headers_size = len(headers)
        self.kinds[index].min_items = kind.min_items
        self.kinds[index].degraded_field = kind.degraded_field
        self.kinds[index].times_field = kind.times_field
        self.kinds[index].timeout_ns = kind.timeout_ns

    cdef void _set_requests(self):
        cdef const uint8_t[::1] messages = self.requests.messages
        cdef const int64_t[::1] offsets = self.requests.offsets
        cdef const int32_t[::1] kinds = self.requests.message_kinds
        cdef const int32_t[::1] message = self.requests.message
        self.work.kinds = self.kinds
        self.work.messages = &messages[0]
        self.work.message_offsets = &offsets[0]
        self.work.message_kinds = &kinds[0]
        self.work.message = &message[0]
        self.work.requests = message.shape[0]

    cdef void _set_record(self):
        cdef int64_t[::1] due = self.record.due, sent = self.record.sent, done = self.record.done
        cdef int16_t[::1] outcome = self.record.outcome
        cdef int32_t[::1] items = self.record.items, stop = self.record.stop
        cdef uint8_t[::1] flags = self.record.flags
        cdef uint8_t[:, ::1] times = self.record.times, texts = self.record.texts
        self.work.due = &due[0]
        self.work.sent = &sent[0]
        self.work.done = &done[0]
        self.work.outcome = &outcome[0]
        self.work.flags = &flags[0]
        self.work.items = &items[0]
        self.work.times = &times[0, 0]
        self.work.times_every = self.record.times_every
        self.work.texts = <char*>&texts[0, 0]
        self.stop = &stop[0]

    def __dealloc__(self):
        free(self.kinds)

    def run(self, sockets, *, int64_t outstanding=0, int64_t end_ns=0):
        """Send every request when it is due; see client.pyi."""
        cdef loop_state state
        cdef int32_t index
        cdef int end
        if not sockets:
            raise ValueError("sockets: expected at least one")
        state.work = &self.work
        start(&state, len(sockets), sockets[0])
        state.outstanding = outstanding
        state.end_ns = end_ns
        state.stop = self.stop
        for index in range(state.connections):
            state.peers[index].fd = sockets[index]
            h2_open(&state.peers[index].h2, &self.work)
        with nogil:
            end = loop_run(&state, self.kinds_size)
        free(state.peers)
        free(state.polled)
        return ENDS[end], (<bytes>state.error).decode() if state.error is not NULL else ""


cdef int start(loop_state* state, int32_t connections, int first) except -1:
    """Room for connections, and the address that the first of them has."""
    state.connections = connections
    state.turn = 0
    state.next = 0
    state.error = NULL
    state.address_size = sizeof(sockaddr_storage)
    if getpeername(first, <sockaddr*>&state.address, &state.address_size) < 0:
        raise ValueError("sockets: the first is not connected")
    state.peers = <loop_peer*>calloc(connections, sizeof(loop_peer))
    state.polled = <pollfd*>calloc(connections, sizeof(pollfd))
    if state.peers is NULL or state.polled is NULL:
        free(state.peers)
        free(state.polled)
        raise MemoryError()
    return 0


cdef class Connection:
    """One connection without a socket; see client.pyi."""

    cdef h2_connection* connection
    cdef Calls calls
    cdef int64_t next

    def __cinit__(self, Calls calls not None):
        self.calls = calls
        self.connection = <h2_connection*>calloc(1, sizeof(h2_connection))
        if self.connection is NULL:
            raise MemoryError()
        h2_open(self.connection, &calls.work)

    def __dealloc__(self):
        free(self.connection)

    def begin(self, int64_t now=0):
        """Begin the next call; see client.pyi."""
        if self.next == self.calls.work.requests:
            raise ValueError("all calls have begun")
        cdef bint begun = h2_begin(self.connection, self.next, now)
        self.next += begun
        return begun

    def feed(self, const uint8_t[::1] data, int64_t now=1):
        """What the peer says; see client.pyi."""
        cdef size_t at = 0, size
        while at < <size_t>data.shape[0] and self.connection.error is NULL:
            size = min(<size_t>data.shape[0] - at, H2_IN - self.connection.in_size)
            memcpy(self.connection.in_ + self.connection.in_size, &data[at], size)
            self.connection.in_size += size
            h2_feed(self.connection, now)
            at += size

    def take_output(self):
        """What is to be written; see client.pyi."""
        taken = self.connection.out[self.connection.out_start:self.connection.out_size]
        self.connection.out_start = self.connection.out_size
        return taken

    @property
    def error(self):
        """Why the connection cannot go on; see client.pyi."""
        return "" if self.connection.error is NULL else (<bytes>self.connection.error).decode()

    @property
    def open_calls(self):
        """Calls without an outcome; see client.pyi."""
        return self.connection.open

    @property
    def draining(self):
        """The peer wants no more calls; see client.pyi."""
        return bool(self.connection.draining)


def check_requests(requests):
    """Indices lead somewhere, and no message is empty."""
    messages = len(requests.message_kinds)
    check_array("messages", requests.messages, np.uint8, (None,))
    check_array("offsets", requests.offsets, np.int64, (messages + 1,))
    check_array("message_kinds", requests.message_kinds, np.int32, (None,))
    check_array("message", requests.message, np.int32, (None,))
    if not messages or not len(requests.message):
        raise ValueError("requests: expected at least one request")
    offsets = requests.offsets
    if offsets[0] != 0 or offsets[messages] != len(requests.messages) or (np.diff(offsets) < 5).any():
        raise ValueError("offsets: expected to rise from 0 to the size of messages, by 5 bytes and more")
    check_indices("message_kinds", requests.message_kinds, len(requests.kinds))
    check_indices("message", requests.message, messages)


def check_indices(name, indices, size):
    """All are at least 0 and below `size`."""
    if indices.min() < 0 or indices.max() >= size:
        raise ValueError(f"{name}: expected indices below {size}, found {indices.min()} to {indices.max()}")


def check_record(record, requests):
    """Every array has room."""
    for name, dtype in (("due", np.int64), ("sent", np.int64), ("done", np.int64), ("outcome", np.int16),
                        ("items", np.int32), ("flags", np.uint8)):
        check_array(name, getattr(record, name), dtype, (requests,))
    if record.times_every < 1:
        raise ValueError(f"times_every: expected at least 1, found {record.times_every}")
    samples = -(-requests // record.times_every)
    check_array("times", record.times, np.uint8, (samples, H2_SECTION + 1))
    check_array("texts", record.texts, np.uint8, (OUTCOMES, HPACK_TEXT))
    check_array("stop", record.stop, np.int32, (1,))
