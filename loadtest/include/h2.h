/* One connection of a gRPC client that makes unary calls: HTTP/2 (RFC 9113) and gRPC's mapping onto it
   (PROTOCOL-HTTP2.md of grpc/grpc), as far as that needs it. No input or output and no clock: bytes that came in are
   fed, bytes to be written pile up in `out`, and whoever feeds says what time it is. Whatever comes in, it ends in an
   outcome of each call: malformed bytes are an error of the connection. */
#ifndef RECSERVE_H2_H
#define RECSERVE_H2_H

#include "hpack.h"

#define H2_CALLS (1 << 14)            /* at most, under way on a connection; a power of two */
#define H2_FRAME (1 << 14)            /* the largest frame that we take: the protocol's default */
#define H2_HEADER 9
#define H2_IN (4 * (H2_FRAME + H2_HEADER))
#define H2_OUT (1 << 20)
#define H2_RESERVED (1 << 16)         /* of `out`, for what answers frames; requests leave it free */
#define H2_BLOCK (1 << 16)            /* largest header block over several frames */
#define H2_WINDOW 0x7fffffff          /* the largest window: answers need not wait for us */
#define H2_REFRESH (1 << 20)          /* bytes taken after which the connection's window is opened again */
#define H2_SECTION 48                 /* bytes kept of StageTimes, whose seven numbers need at most 42 */
#define H2_TIMEOUT 99999999LL         /* longest grpc-timeout in microseconds: eight digits */

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, PRIORITISED = 32 };
enum { HEADER_TABLE_SIZE = 1, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE };

/* How a call ended: gRPC's status codes, and what only a client can see. */
enum {
    OK = 0,
    CANCELLED = 1,
    UNKNOWN = 2,
    DEADLINE_EXCEEDED = 4,
    PERMISSION_DENIED = 7,
    RESOURCE_EXHAUSTED = 8,
    UNIMPLEMENTED = 12,
    INTERNAL = 13,
    UNAVAILABLE = 14,
    UNAUTHENTICATED = 16,
    SHORT = 17,                       /* OK, but with fewer items than expected */
    LOST = 18,                        /* the connection was lost, or there was none */
    MALFORMED = 19,                   /* what came was not gRPC */
    OUTCOMES = 20,
    PENDING = -1,
    UNSENT = -2,
};

enum { BLOCKED = 1, DEGRADED = 2 };   /* flags of a call: the target's limits delayed it; its answer says degraded */

/* What requests of one kind share. */
typedef struct {
    const uint8_t *headers;           /* header block but for grpc-timeout: literals without indexing */
    uint32_t headers_size;
    uint32_t min_items;               /* of a good answer */
    uint32_t degraded_field;          /* numbers of fields of the answer; `items` is field 1 */
    uint32_t times_field;
    int64_t timeout_ns;               /* deadline after the scheduled instant; 0: none */
} h2_kind;

/* What is sent and what became of it, by request. */
typedef struct {
    const h2_kind *kinds;
    const uint8_t *messages;          /* with the five bytes that gRPC puts in front */
    const int64_t *message_offsets;   /* message m: offsets[m] to offsets[m + 1] */
    const int32_t *message_kinds;
    const int32_t *message;           /* of request i */
    int64_t requests;
    int64_t *due, *sent, *done;       /* CLOCK_MONOTONIC in nanoseconds; 0: not yet */
    int16_t *outcome;
    uint8_t *flags;
    int32_t *items;
    uint8_t *times;                   /* StageTimes of every times_every-th request: its size, then its bytes */
    int64_t times_every;
    char *texts;                      /* [OUTCOMES][HPACK_TEXT]: grpc-message of the first of each outcome */
} h2_work;

enum { PREFIX, TAG, LENGTH, VARINT, SKIP, COPY };  /* where in an answer the reader is */

typedef struct {
    uint32_t stream;                  /* 0: the place is free */
    int64_t request;
    int64_t expires_ns;               /* 0: never */
    int64_t window;                   /* bytes that the peer takes of this stream */
    const uint8_t *unsent;
    int64_t unsent_size;
    int32_t next_unsent;              /* place of the next call with unsent bytes, -1: none */
    int http_status, grpc_status;     /* as in hpack_fields */
    /* The answer, read as it comes: top-level fields are counted and skipped, never parsed. */
    uint8_t state;
    uint8_t shift;                    /* bits, or bytes of the prefix, that were read of what is being read */
    uint8_t broken;
    uint8_t kept;
    uint32_t tag;
    uint32_t items;
    uint64_t number;
    int64_t left;                     /* bytes of the message */
    uint64_t skip;                    /* bytes of the field */
} h2_call;

typedef struct {
    const h2_work *work;
    h2_call calls[H2_CALLS];          /* a stream's place: its number / 2 modulo H2_CALLS */
    int64_t open;
    uint32_t next_stream;
    int32_t first_unsent, last_unsent;
    int64_t window, initial_window, max_frame, max_streams;  /* as the peer says */
    int64_t taken;                    /* bytes taken since our window was opened last */
    int settled;                      /* the peer's first SETTINGS have come */
    int draining;                     /* GOAWAY has come, or stream numbers have run out: no new calls */
    const char *error;                /* why the connection cannot go on; NULL: it can */
    uint32_t block_stream;            /* of the header block that CONTINUATION goes on with; 0: none */
    int block_ends;                   /* END_STREAM stood on its HEADERS */
    hpack_fields fields;              /* of the block that was read last */
    size_t block_size, in_size, out_size, out_start;
    uint8_t block[H2_BLOCK], in[H2_IN], out[H2_OUT];
} h2_connection;

static uint32_t h2_read32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void h2_write32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* Room for that many more bytes of `out`, behind what is there; NULL: there is none. */
static uint8_t *h2_room(h2_connection *c, size_t size, size_t reserved) {
    if (c->out_size + size + reserved > H2_OUT && c->out_start) {
        memmove(c->out, c->out + c->out_start, c->out_size - c->out_start);
        c->out_size -= c->out_start;
        c->out_start = 0;
    }
    if (c->out_size + size + reserved > H2_OUT) return NULL;
    c->out_size += size;
    return c->out + c->out_size - size;
}

static void h2_frame_header(uint8_t *at, size_t size, int type, int flags, uint32_t stream) {
    h2_write32(at, (uint32_t)size << 8 | (uint32_t)type);
    at[4] = (uint8_t)flags;
    h2_write32(at + 5, stream);
}

/* A frame that answers the peer. One that sends without ever reading fills `out`, and that is the end of it. */
static void h2_control(h2_connection *c, int type, int flags, uint32_t stream, const uint8_t *payload, size_t size) {
    uint8_t *at = h2_room(c, H2_HEADER + size, 0);
    if (!at) {
        c->error = "it sends frames that ask for answers, and does not read the answers";
        return;
    }
    h2_frame_header(at, size, type, flags, stream);
    if (size) memcpy(at + H2_HEADER, payload, size);
}

static void h2_control32(h2_connection *c, int type, uint32_t stream, uint32_t value) {
    uint8_t payload[4];
    h2_write32(payload, value);
    h2_control(c, type, 0, stream, payload, 4);
}

/* Begins: what a client says first. */
static void h2_open(h2_connection *c, const h2_work *work) {
    static const uint8_t preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    static const uint8_t settings[] = {
        0, HEADER_TABLE_SIZE,   0,    0,    0,    0,
        0, ENABLE_PUSH,         0,    0,    0,    0,
        0, INITIAL_WINDOW_SIZE, 0x7f, 0xff, 0xff, 0xff,
    };
    for (int i = 0; i < H2_CALLS; i++) c->calls[i].stream = 0;
    c->work = work;
    c->open = 0;
    c->next_stream = 1;
    c->first_unsent = c->last_unsent = -1;
    c->window = c->initial_window = 65535;
    c->max_frame = H2_FRAME;
    c->max_streams = H2_CALLS;
    c->taken = 0;
    c->settled = c->draining = c->block_ends = 0;
    c->error = NULL;
    c->block_stream = 0;
    c->block_size = c->in_size = c->out_size = c->out_start = 0;
    memcpy(h2_room(c, sizeof preface - 1, 0), preface, sizeof preface - 1);
    h2_control(c, SETTINGS, 0, 0, settings, sizeof settings);
    h2_control32(c, WINDOW_UPDATE, 0, H2_WINDOW - 65535);
}

/* ------------------------------------------------------------------------------------------------- ends of calls */

static void h2_forget_unsent(h2_connection *c, const h2_call *call) {
    int32_t before = -1, place = (int32_t)(call - c->calls);
    for (int32_t at = c->first_unsent; at >= 0; before = at, at = c->calls[at].next_unsent) {
        if (at != place) continue;
        if (before < 0)
            c->first_unsent = call->next_unsent;
        else
            c->calls[before].next_unsent = call->next_unsent;
        if (c->last_unsent == at) c->last_unsent = before;
        return;
    }
}

static void h2_keep_text(const h2_work *work, int outcome, const char *text) {
    char *kept = work->texts + outcome * HPACK_TEXT;
    if (!*kept && *text) strncpy(kept, text, HPACK_TEXT - 1);
}

static void h2_end(h2_connection *c, h2_call *call, int outcome, const char *text, int64_t now) {
    if (call->unsent_size) h2_forget_unsent(c, call);
    c->work->done[call->request] = now;
    c->work->outcome[call->request] = (int16_t)outcome;
    c->work->items[call->request] = (int32_t)call->items;
    if (outcome != OK) h2_keep_text(c->work, outcome, text);
    call->stream = 0;
    c->open--;
}

/* Ends a call that the peer may still be at work on. */
static void h2_abandon(h2_connection *c, h2_call *call, int outcome, const char *text, int64_t now) {
    h2_control32(c, RST_STREAM, call->stream, 8);  /* CANCEL */
    h2_end(c, call, outcome, text, now);
}

/* Ends all calls with a number above `last`. */
static void h2_end_above(h2_connection *c, uint32_t last, int outcome, const char *text, int64_t now) {
    for (int i = 0; i < H2_CALLS && c->open; i++)
        if (c->calls[i].stream > last) h2_end(c, &c->calls[i], outcome, text, now);
}

/* The status for an answer without one, by gRPC's table of HTTP statuses. */
static int h2_from_http(int status) {
    switch (status) {
        case 400: return INTERNAL;
        case 401: return UNAUTHENTICATED;
        case 403: return PERMISSION_DENIED;
        case 404: return UNIMPLEMENTED;
        case 429: case 502: case 503: case 504: return UNAVAILABLE;
        default: return UNKNOWN;
    }
}

/* The status for a reset, by gRPC's table of HTTP/2 errors. */
static int h2_from_reset(uint32_t code) {
    switch (code) {
        case 7: return UNAVAILABLE;         /* REFUSED_STREAM */
        case 8: return CANCELLED;           /* CANCEL */
        case 11: return RESOURCE_EXHAUSTED; /* ENHANCE_YOUR_CALM */
        case 12: return PERMISSION_DENIED;  /* INADEQUATE_SECURITY */
        default: return INTERNAL;
    }
}

/* The peer has ended the stream: what came of the call. */
static void h2_finish(h2_connection *c, h2_call *call, int64_t now) {
    const h2_work *work = c->work;
    const h2_kind *kind = &work->kinds[work->message_kinds[work->message[call->request]]];
    if (call->unsent_size) h2_control32(c, RST_STREAM, call->stream, 0);  /* it does not wait for the rest */
    if (call->grpc_status > UNAUTHENTICATED)
        h2_end(c, call, UNKNOWN, "a status that gRPC does not define", now);
    else if (call->grpc_status > OK)
        h2_end(c, call, call->grpc_status, c->fields.message, now);
    else if (call->grpc_status < OK && call->http_status != 200)
        h2_end(c, call, h2_from_http(call->http_status), "an HTTP status without a grpc-status", now);
    else if (call->grpc_status < OK)
        h2_end(c, call, MALFORMED, "an answer without grpc-status", now);
    else if (call->broken || call->state != TAG || call->shift || call->left)
        h2_end(c, call, MALFORMED, "an answer whose body is not one whole message", now);
    else if (call->items < kind->min_items)
        h2_end(c, call, SHORT, "fewer items than expected", now);
    else
        h2_end(c, call, OK, "", now);
}

/* ------------------------------------------------------------------------------------------------------ requests */

/* Writes what windows and room allow of the bodies that are not out yet. */
static void h2_pump(h2_connection *c) {
    int32_t at = c->first_unsent;
    while (at >= 0 && c->window > 0) {
        h2_call *call = &c->calls[at];
        int64_t size = call->unsent_size;
        if (size > c->max_frame) size = c->max_frame;
        if (size > c->window) size = c->window;
        if (size > call->window) size = call->window;
        if (size <= 0) { /* this stream's window is closed; others may be open */
            at = call->next_unsent;
            continue;
        }
        uint8_t *to = h2_room(c, H2_HEADER + (size_t)size, H2_RESERVED);
        if (!to) return;
        h2_frame_header(to, (size_t)size, DATA, size == call->unsent_size ? END_STREAM : 0, call->stream);
        memcpy(to + H2_HEADER, call->unsent, (size_t)size);
        c->window -= size;
        call->window -= size;
        call->unsent += size;
        if (call->unsent_size == size) {
            int32_t next = call->next_unsent;
            h2_forget_unsent(c, call);
            call->unsent_size = 0;
            at = next;
        } else {
            call->unsent_size -= size;
        }
    }
}

/* Whether a call can be begun now. */
static int h2_can_begin(const h2_connection *c) {
    return !c->error && !c->draining && c->open < c->max_streams && !c->calls[c->next_stream / 2 % H2_CALLS].stream;
}

static size_t h2_write_timeout(uint8_t *to, int64_t nanoseconds) {
    static const uint8_t name[] = "\x00\x0cgrpc-timeout\x09";
    int64_t left = nanoseconds / 1000;
    if (left > H2_TIMEOUT) left = H2_TIMEOUT;
    memcpy(to, name, sizeof name - 1);
    for (int i = 7; i >= 0; i--, left /= 10) to[sizeof name - 1 + i] = (uint8_t)('0' + left % 10);
    to[sizeof name + 7] = 'u';
    return sizeof name + 8;
}

/* Begins a call; 0: not now, as the peer's limits or `out` are full. Its deadline counts from when it was due. */
static int h2_begin(h2_connection *c, int64_t request, int64_t now) {
    const h2_work *work = c->work;
    int32_t message = work->message[request];
    const h2_kind *kind = &work->kinds[work->message_kinds[message]];
    uint8_t timeout[32];
    if (!h2_can_begin(c)) return 0;
    int64_t expires = kind->timeout_ns ? work->due[request] + kind->timeout_ns : 0;
    size_t timeout_size = expires ? h2_write_timeout(timeout, expires - now) : 0;
    size_t block = kind->headers_size + timeout_size;
    uint8_t *to = h2_room(c, H2_HEADER + block, H2_RESERVED);
    if (!to) return 0;
    h2_frame_header(to, block, HEADERS, END_HEADERS, c->next_stream);
    memcpy(to + H2_HEADER, kind->headers, kind->headers_size);
    memcpy(to + H2_HEADER + kind->headers_size, timeout, timeout_size);
    int32_t place = (int32_t)(c->next_stream / 2 % H2_CALLS);
    h2_call *call = &c->calls[place];
    memset(call, 0, sizeof *call);
    call->stream = c->next_stream;
    call->request = request;
    call->expires_ns = expires;
    call->window = c->initial_window;
    call->unsent = work->messages + work->message_offsets[message];
    call->unsent_size = work->message_offsets[message + 1] - work->message_offsets[message];
    call->next_unsent = -1;
    call->http_status = call->grpc_status = -1;
    if (c->last_unsent < 0)
        c->first_unsent = place;
    else
        c->calls[c->last_unsent].next_unsent = place;
    c->last_unsent = place;
    c->open++;
    work->outcome[request] = PENDING;
    if (c->next_stream == H2_WINDOW) c->draining = 1;
    c->next_stream += 2;
    h2_pump(c);
    return 1;
}

/* ------------------------------------------------------------------------------------------------------- answers */

/* What StageTimes of this call are kept in; NULL: they are not. */
static uint8_t *h2_times(const h2_work *work, int64_t request) {
    if (!work->times_every || request % work->times_every) return NULL;
    return work->times + request / work->times_every * (H2_SECTION + 1);
}

/* The reader knows a length-delimited field's number and size. */
static void h2_field(const h2_work *work, h2_call *call) {
    const h2_kind *kind = &work->kinds[work->message_kinds[work->message[call->request]]];
    uint32_t number = call->tag >> 3;
    call->skip = call->number;
    call->state = SKIP;
    if (number == 1) call->items++;
    if (number == kind->degraded_field) work->flags[call->request] |= DEGRADED;
    if (number == kind->times_field && call->skip <= H2_SECTION && h2_times(work, call->request)) {
        call->state = COPY;
        call->kept = 0;
        h2_times(work, call->request)[0] = (uint8_t)call->skip;
    }
    if (!call->skip) call->state = TAG;
}

/* One byte of a number; 1: it was the last. */
static int h2_varint(h2_call *call, uint8_t byte) {
    if (call->shift > 63) {
        call->broken = 1;
        return 0;
    }
    call->number |= (uint64_t)(byte & 0x7f) << call->shift;
    call->shift += 7;
    return !(byte & 0x80);
}

static void h2_tag(h2_call *call) {
    call->tag = (uint32_t)call->number;
    call->state = TAG;
    switch (call->number & 7) {
        case 0: call->state = VARINT; break;
        case 1: call->state = SKIP; call->skip = 8; break;
        case 2: call->state = LENGTH; break;
        case 5: call->state = SKIP; call->skip = 4; break;
        default: call->broken = 1;
    }
    if (call->number >> 32 || call->number < 8) call->broken = 1;
    call->number = 0;
    call->shift = 0;
}

/* The five bytes in front of a message. */
static void h2_prefix(h2_call *call, uint8_t byte) {
    if (call->shift == 0 && byte) call->broken = 1;  /* compressed, though we accept no compression */
    if (call->shift) call->left = call->left << 8 | byte;
    if (++call->shift < 5) return;
    call->state = TAG;
    call->shift = 0;
}

static void h2_message_byte(const h2_work *work, h2_call *call, uint8_t byte) {
    if (!h2_varint(call, byte)) return;
    if (call->state == TAG) {
        h2_tag(call);
        return;
    }
    if (call->state == LENGTH)
        h2_field(work, call);
    else
        call->state = TAG;
    call->number = 0;
    call->shift = 0;
}

static void h2_answer(const h2_work *work, h2_call *call, const uint8_t *from, int64_t size) {
    while (size > 0 && !call->broken) {
        if (call->state == PREFIX) {
            h2_prefix(call, *from++);
            size--;
            continue;
        }
        if (call->left <= 0) { /* a second message */
            call->broken = 1;
            return;
        }
        int64_t step = 1;
        if (call->state == SKIP || call->state == COPY) {
            step = size < call->left ? size : call->left;
            if ((uint64_t)step > call->skip) step = (int64_t)call->skip;
            if (call->state == COPY) {
                memcpy(h2_times(work, call->request) + 1 + call->kept, from, (size_t)step);
                call->kept += (uint8_t)step;
            }
            call->skip -= (uint64_t)step;
            if (!call->skip) call->state = TAG;
        } else {
            h2_message_byte(work, call, *from);
        }
        from += step;
        size -= step;
        call->left -= step;
    }
}

/* -------------------------------------------------------------------------------------------------------- frames */

/* The call of a stream; NULL: it has ended, and what still comes is passed over. */
static h2_call *h2_find(h2_connection *c, uint32_t stream) {
    if (stream % 2 == 0 || stream >= c->next_stream) {
        c->error = "it uses a stream that was never opened";
        return NULL;
    }
    h2_call *call = &c->calls[stream / 2 % H2_CALLS];
    return call->stream == stream ? call : NULL;
}

/* Takes padding and priority off a frame's payload; 0: they do not fit. */
static int h2_strip(const uint8_t **payload, size_t *size, int flags) {
    size_t front = (flags & PADDED ? 1 : 0) + (flags & PRIORITISED ? 5 : 0);
    if (*size < front) return 0;
    size_t padding = flags & PADDED ? **payload : 0;
    if (*size < front + padding) return 0;
    *payload += front;
    *size -= front + padding;
    return 1;
}

static void h2_on_data(h2_connection *c, uint32_t stream, int flags, const uint8_t *payload, size_t size, int64_t now) {
    c->taken += (int64_t)size;
    if (c->taken >= H2_REFRESH) {
        h2_control32(c, WINDOW_UPDATE, 0, (uint32_t)c->taken);
        c->taken = 0;
    }
    h2_call *call = h2_find(c, stream);
    if (!h2_strip(&payload, &size, flags & PADDED)) c->error = "the padding of its frame is longer than the frame";
    if (!call || c->error) return;
    if (call->http_status == -1) {
        h2_abandon(c, call, MALFORMED, "data without headers in front", now);
        return;
    }
    h2_answer(c->work, call, payload, (int64_t)size);
    if (flags & END_STREAM) h2_finish(c, call, now);
}

static void h2_on_block(h2_connection *c, const uint8_t *block, size_t size, int64_t now) {
    h2_call *call = h2_find(c, c->block_stream);
    c->block_stream = 0;
    c->fields = (hpack_fields){-1, -1, ""};
    if (c->error) return;
    if (!hpack_read(block, size, &c->fields)) {
        c->error = "its headers cannot be read; it may use a dynamic table though one of size 0 was announced";
        return;
    }
    if (!call) return;
    if (c->fields.http_status != -1) call->http_status = c->fields.http_status;
    if (c->fields.grpc_status != -1) call->grpc_status = c->fields.grpc_status;
    if (c->block_ends) h2_finish(c, call, now);
}

static void h2_on_headers(h2_connection *c, uint32_t stream, int flags, const uint8_t *payload, size_t size,
                          int64_t now) {
    if (!h2_strip(&payload, &size, flags)) {
        c->error = "the padding of its frame is longer than the frame";
        return;
    }
    c->block_stream = stream;
    c->block_ends = flags & END_STREAM;
    if (flags & END_HEADERS) {
        h2_on_block(c, payload, size, now);
        return;
    }
    memcpy(c->block, payload, size);
    c->block_size = size;
}

static void h2_on_continuation(h2_connection *c, int flags, const uint8_t *payload, size_t size, int64_t now) {
    if (c->block_size + size > H2_BLOCK) {
        c->error = "its headers are longer than 64 KiB";
        return;
    }
    memcpy(c->block + c->block_size, payload, size);
    c->block_size += size;
    if (flags & END_HEADERS) h2_on_block(c, c->block, c->block_size, now);
}

static void h2_on_setting(h2_connection *c, int name, uint32_t value) {
    if (name == MAX_CONCURRENT_STREAMS) c->max_streams = value;
    if (name == MAX_FRAME_SIZE) {
        if (value < H2_FRAME || value > 0xffffff) c->error = "its MAX_FRAME_SIZE is out of range";
        c->max_frame = value < H2_OUT / 4 ? value : H2_OUT / 4;
    }
    if (name == INITIAL_WINDOW_SIZE) {
        if (value > H2_WINDOW) c->error = "its INITIAL_WINDOW_SIZE is out of range";
        for (int i = 0; i < H2_CALLS; i++) c->calls[i].window += (int64_t)value - c->initial_window;
        c->initial_window = value;
    }
}

static void h2_on_settings(h2_connection *c, int flags, const uint8_t *payload, size_t size) {
    if (flags & ACK) return;
    for (size_t i = 0; i + 6 <= size && !c->error; i += 6)
        h2_on_setting(c, payload[i] << 8 | payload[i + 1], h2_read32(payload + i + 2));
    c->settled = 1;
    h2_control(c, SETTINGS, ACK, 0, NULL, 0);
    h2_pump(c);
}

static void h2_on_window(h2_connection *c, uint32_t stream, uint32_t more) {
    h2_call *call = stream ? h2_find(c, stream) : NULL;
    int64_t *window = stream ? (call ? &call->window : NULL) : &c->window;
    if (!window || c->error) return;
    *window += more;
    if (!more || *window > H2_WINDOW) c->error = "its WINDOW_UPDATE is out of range";
    h2_pump(c);
}

/* Whether a frame's size and stream are such as its type may have. */
static int h2_fits(int type, uint32_t stream, int flags, size_t size) {
    switch (type) {
        case DATA: case HEADERS: case CONTINUATION: return stream != 0;
        case PRIORITY: return stream != 0 && size == 5;
        case RST_STREAM: return stream != 0 && size == 4;
        case SETTINGS: return stream == 0 && size % 6 == 0 && !(flags & ACK && size);
        case PING: return stream == 0 && size == 8;
        case GOAWAY: return stream == 0 && size >= 8;
        case WINDOW_UPDATE: return size == 4;
        case PUSH_PROMISE: return 0;  /* refused by our settings */
        default: return 1;            /* unknown types are to be passed over */
    }
}

static void h2_on_frame(h2_connection *c, const uint8_t *frame, size_t size, int64_t now) {
    int type = frame[3], flags = frame[4];
    uint32_t stream = h2_read32(frame + 5) & H2_WINDOW;
    const uint8_t *payload = frame + H2_HEADER;
    h2_call *call;
    if (!c->settled && type != SETTINGS) c->error = "it does not begin as HTTP/2 does, with SETTINGS";
    if (!h2_fits(type, stream, flags, size)) c->error = "it sends a frame that its type does not allow";
    if (c->block_stream ? type != CONTINUATION || stream != c->block_stream : type == CONTINUATION)
        c->error = "it interrupts or continues headers where it may not";
    if (c->error) return;
    switch (type) {
        case DATA: h2_on_data(c, stream, flags, payload, size, now); break;
        case HEADERS: h2_on_headers(c, stream, flags, payload, size, now); break;
        case CONTINUATION: h2_on_continuation(c, flags, payload, size, now); break;
        case SETTINGS: h2_on_settings(c, flags, payload, size); break;
        case WINDOW_UPDATE: h2_on_window(c, stream, h2_read32(payload) & H2_WINDOW); break;
        case PING:
            if (!(flags & ACK)) h2_control(c, PING, ACK, 0, payload, 8);
            break;
        case RST_STREAM:
            call = h2_find(c, stream);
            if (call) h2_end(c, call, h2_from_reset(h2_read32(payload)), "the stream was reset", now);
            break;
        case GOAWAY:
            c->draining = 1;
            h2_end_above(c, h2_read32(payload) & H2_WINDOW, UNAVAILABLE, "the target is going away", now);
            break;
    }
}

/* The connection is of no use any more: its calls end so. */
static void h2_close(h2_connection *c, int outcome, const char *text, int64_t now) {
    h2_end_above(c, 0, outcome, text, now);
    c->draining = 1;
}

/* Takes the in_size bytes of `in`; an error ends all calls. */
static void h2_feed(h2_connection *c, int64_t now) {
    size_t at = 0;
    while (!c->error && c->in_size - at >= H2_HEADER) {
        size_t size = h2_read32(c->in + at) >> 8;
        if (size > H2_FRAME) c->error = c->settled ? "its frame is too long" : "it does not speak HTTP/2";
        if (c->error || c->in_size - at < H2_HEADER + size) break;
        h2_on_frame(c, c->in + at, size, now);
        at += H2_HEADER + size;
    }
    memmove(c->in, c->in + at, c->in_size - at);
    c->in_size -= at;
    if (c->error) h2_close(c, MALFORMED, c->error, now);
}

#endif
