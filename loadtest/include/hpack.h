/* Reads header blocks (RFC 7541) as a client may that has announced a dynamic table of size 0: entries are literals or
   come from the static table, and of them only the statuses and grpc-message matter. Nothing is kept between blocks. */
#ifndef RECSERVE_HPACK_H
#define RECSERVE_HPACK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HPACK_TEXT 256          /* longer strings are read, and kept only so far */
#define HPACK_STATIC_ENTRIES 61
#define HUFFMAN_SYMBOLS 257     /* bytes, and the end of string, which no string may contain */
#define HUFFMAN_LONGEST 30

typedef struct {
    int http_status;            /* -1: not there */
    int grpc_status;            /* -1: not there, -2: not a number */
    char message[HPACK_TEXT];   /* grpc-message, cut; empty: not there */
} hpack_fields;

typedef struct {
    char bytes[HPACK_TEXT];
    size_t size;                /* of what is kept */
    int cut;
} hpack_text;

typedef struct {
    const uint8_t *at, *end;
} hpack_input;

/* Lengths of the codes of RFC 7541, appendix B. The code is canonical, so they are all of it. */
static const uint8_t HUFFMAN_LENGTHS[HUFFMAN_SYMBOLS] = {
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6,  10, 10, 12, 13, 6,  8,  11, 10, 10, 8,  11, 8,  6,  6,  6,  5,  5,  5,  6,  6,  6,  6,  6,  6,  6,
    7,  8,  15, 6,  12, 10, 13, 6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
    7,  8,  7,  8,  13, 19, 13, 14, 6,  15, 5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,
    5,  6,  7,  7,  7,  7,  7,  15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24,
    24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26,
    27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23,
    22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30};

static uint32_t huffman_first[HUFFMAN_LONGEST + 1];   /* code of the first symbol of a length */
static uint16_t huffman_count[HUFFMAN_LONGEST + 1];   /* symbols of a length */
static uint16_t huffman_offset[HUFFMAN_LONGEST + 1];  /* where they begin in huffman_symbols */
static uint16_t huffman_symbols[HUFFMAN_SYMBOLS];     /* by length, then by value */

/* To be called once, before anything is read. */
static void hpack_prepare(void) {
    uint32_t code = 0;
    uint16_t place = 0;
    for (int length = 1; length <= HUFFMAN_LONGEST; length++) {
        code <<= 1;
        huffman_first[length] = code;
        huffman_offset[length] = place;
        for (int symbol = 0; symbol < HUFFMAN_SYMBOLS; symbol++)
            if (HUFFMAN_LENGTHS[symbol] == length) huffman_symbols[place++] = (uint16_t)symbol;
        huffman_count[length] = (uint16_t)(place - huffman_offset[length]);
        code += huffman_count[length];
    }
}

static void hpack_keep(hpack_text *text, uint8_t byte) {
    if (text->size < HPACK_TEXT - 1)
        text->bytes[text->size++] = (char)byte;
    else
        text->cut = 1;
}

/* Whether the bytes are a Huffman-coded string. */
static int huffman_decode(const uint8_t *from, size_t size, hpack_text *text) {
    uint32_t code = 0;
    int length = 0;
    for (size_t i = 0; i < size; i++)
        for (int bit = 7; bit >= 0; bit--) {
            code = code << 1 | (from[i] >> bit & 1);
            if (++length > HUFFMAN_LONGEST) return 0;
            uint32_t place = code - huffman_first[length];
            if (code < huffman_first[length] || place >= huffman_count[length]) continue;
            uint16_t symbol = huffman_symbols[huffman_offset[length] + place];
            if (symbol == HUFFMAN_SYMBOLS - 1) return 0;
            hpack_keep(text, (uint8_t)symbol);
            code = 0;
            length = 0;
        }
    return length < 8 && code == (1u << length) - 1;  /* padded with the first bits of the end of string, all ones */
}

/* An integer of section 5.1 whose prefix has `bits` bits. */
static int hpack_integer(hpack_input *in, int bits, uint32_t *value) {
    if (in->at >= in->end) return 0;
    uint32_t most = (1u << bits) - 1;
    *value = *in->at++ & most;
    if (*value < most) return 1;
    for (int shift = 0; shift <= 21; shift += 7) {  /* up to 2**28: more than any block has bytes */
        if (in->at >= in->end) return 0;
        uint8_t byte = *in->at++;
        *value += (uint32_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return 1;
    }
    return 0;
}

static int hpack_string(hpack_input *in, hpack_text *text) {
    text->size = 0;
    text->cut = 0;
    if (in->at >= in->end) return 0;
    int huffman = *in->at & 0x80;
    uint32_t size;
    if (!hpack_integer(in, 7, &size) || size > (size_t)(in->end - in->at)) return 0;
    const uint8_t *from = in->at;
    in->at += size;
    if (huffman && !huffman_decode(from, size, text)) return 0;
    for (uint32_t i = 0; !huffman && i < size; i++) hpack_keep(text, from[i]);
    text->bytes[text->size] = 0;
    return 1;
}

static int hpack_is(const hpack_text *text, const char *word) {
    return !text->cut && text->size == strlen(word) && memcmp(text->bytes, word, text->size) == 0;
}

/* A status of up to three digits, or -2. */
static int hpack_status(const hpack_text *text) {
    int value = 0;
    if (text->size == 0 || text->size > 3) return -2;
    for (size_t i = 0; i < text->size; i++) {
        if (text->bytes[i] < '0' || text->bytes[i] > '9') return -2;
        value = 10 * value + (text->bytes[i] - '0');
    }
    return value;
}

/* Reads one literal entry whose name has an index of `bits` bits, 0: a name of its own. */
static int hpack_literal(hpack_input *in, int bits, hpack_fields *fields) {
    hpack_text name = {{0}, 0, 0}, value;
    uint32_t index;
    if (!hpack_integer(in, bits, &index) || index > HPACK_STATIC_ENTRIES) return 0;
    if (index == 0 && !hpack_string(in, &name)) return 0;
    if (!hpack_string(in, &value)) return 0;
    if ((index >= 8 && index <= 14) || hpack_is(&name, ":status")) fields->http_status = hpack_status(&value);
    if (hpack_is(&name, "grpc-status")) fields->grpc_status = hpack_status(&value);
    if (hpack_is(&name, "grpc-message")) memcpy(fields->message, value.bytes, value.size + 1);
    return 1;
}

/* Whether the bytes are a header block that this client can be sent; what it says goes to `fields`. */
static int hpack_read(const uint8_t *from, size_t size, hpack_fields *fields) {
    static const int statuses[] = {200, 204, 206, 304, 400, 404, 500};  /* entries 8 to 14 of the static table */
    hpack_input in = {from, from + size};
    uint32_t value;
    while (in.at < in.end) {
        uint8_t byte = *in.at;
        if (byte & 0x80) { /* indexed */
            if (!hpack_integer(&in, 7, &value) || value == 0 || value > HPACK_STATIC_ENTRIES) return 0;
            if (value >= 8 && value <= 14) fields->http_status = statuses[value - 8];
        } else if (byte & 0x40) { /* to be added to a table that holds nothing */
            if (!hpack_literal(&in, 6, fields)) return 0;
        } else if (byte & 0x20) { /* the table's size */
            if (!hpack_integer(&in, 5, &value) || value != 0) return 0;
        } else if (!hpack_literal(&in, 4, fields)) { /* without indexing, or never indexed */
            return 0;
        }
    }
    return 1;
}

#endif
