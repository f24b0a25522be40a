// HTTP/2: real HPACK with the dynamic table and Huffman, as clients do it.
#pragma once
#include "huffman.h"
#include "http1.h"

// RFC 7541 section 5.2, Huffman-coded where that is shorter.
static unsigned char *hpack_string(unsigned char *o, const char *s, size_t n) {
    size_t bits = 0;
    for (size_t i = 0; i < n; i++)
        bits += huff_bits[(unsigned char)s[i]];
    size_t len = (bits + 7) / 8;
    int huff = len < n;
    size_t v = huff ? len : n;
    unsigned char m = huff ? 0x80 : 0;
    if (v < 127)
        *o++ = m | v;
    else {
        *o++ = m | 127;
        v -= 127;
        while (v > 127) {
            *o++ = v | 128;
            v >>= 7;
        }
        *o++ = v;
    }
    if (!huff) {
        memcpy(o, s, n);
        return o + n;
    }
    uint64_t acc = 0;
    int k = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char b = s[i];
        acc = acc << huff_bits[b] | huff_code[b];
        k += huff_bits[b];
        while (k >= 8) {
            k -= 8;
            *o++ = acc >> k;
        }
    }
    if (k) *o++ = acc << (8 - k) | (0xff >> k);
    return o;
}

// RFC 7541 section 5.1; `first` holds the bits above the prefix of `bits` bits.
static unsigned char *hpack_integer(unsigned char *o, int first, int bits, unsigned v) {
    unsigned m = (1 << bits) - 1;
    if (v < m) {
        *o++ = first | v;
        return o;
    }
    *o++ = first | m;
    v -= m;
    while (v > 127) {
        *o++ = v | 128;
        v >>= 7;
    }
    *o++ = v;
    return o;
}

enum { METHOD, SCHEME, PATH, AUTH, UA, ACC, ENC, AUTHZ, RID, TP, CT, TE, TMO };
static const char *field_names[] = {":method", ":scheme", ":path", ":authority", "user-agent", "accept",
    "accept-encoding", "authorization", "x-request-id", "traceparent", "content-type", "te", "grpc-timeout"};
static const int field_static[] = {2, 6, 4, 1, 58, 19, 16, 23, 0, 0, 31, 0, 0};
static void evict(Conn *c, unsigned max) {
    unsigned k = 0;
    while (c->dyn_size > max)
        c->dyn_size -= c->dyn[k++].size;
    memmove(c->dyn, c->dyn + k, (c->dyn_count - k) * sizeof(Entry));
    c->dyn_count -= k;
}

// `id` tells values of a field apart: entries with the same field and id are the same line; unique fields use a fresh
// id.
static unsigned char *hpack_field(Conn *c, unsigned char *o, int f, int id, const char *v) {
    int key = id << 8 | f, name = field_static[f];
    for (int i = c->dyn_count - 1; i >= 0; i--) {
        if (c->dyn[i].field == key) return hpack_integer(o, 0x80, 7, 62 + c->dyn_count - 1 - i);
        if (!name && (c->dyn[i].field & 255) == f) name = 62 + c->dyn_count - 1 - i;
    }
    size_t n = strlen(v);
    unsigned size = 32 + strlen(field_names[f]) + n;
    o = hpack_integer(o, 0x40, 6, name);
    if (!name) o = hpack_string(o, field_names[f], strlen(field_names[f]));
    o = hpack_string(o, v, n);
    evict(c, size > c->dyn_max ? 0 : c->dyn_max - size);
    if (size <= c->dyn_max) {
        c->dyn[c->dyn_count++] = (Entry){key, size};
        c->dyn_size += size;
    }
    return o;
}

static void frame(Conn *c, uint32_t len, int type, int flags, uint32_t sid) {
    unsigned char h[9] = {len >> 16, len >> 8, len, type, flags, sid >> 24, sid >> 16, sid >> 8, sid};
    memcpy(c->out + c->out_size, h, 9);
    c->out_size += 9;
}

static void bytes(Conn *c, const void *p, size_t n) {
    memcpy(c->out + c->out_size, p, n);
    c->out_size += n;
}

static const char msg[5 + 64] = {0, 0, 0, 0, 64};
// Opens as many streams as are allowed.
static void fill(Conn *c) {
    while (c->in_flight < max_streams && !c->going && c->out_size < sizeof c->out - 4096) {
        Stream *t = &c->streams[c->sid >> 1 & (SLOTS - 1)];
        if (t->open || (grpc && c->send_window < (long)sizeof msg)) return;
        unsigned char b[2048], *o = b;
        next_ids();
        int u = sequence & 0x3fffff;
        if (c->resize) {
            o = hpack_integer(o, 0x20, 5, c->dyn_max);
            c->resize = 0;
        }
        *o++ = grpc ? 0x83 : 0x82;
        *o++ = tls ? 0x87 : 0x86;
        o = hpack_field(c, o, PATH, path_digits ? sequence % path_count : 0, path);
        o = hpack_field(c, o, AUTH, 0, host);
        if (grpc) {
            o = hpack_field(c, o, UA, 0, "grpc-python/1.66.1 grpc-c/43.0.0 (linux; chttp2)");
            o = hpack_field(c, o, CT, 0, "application/grpc");
            o = hpack_field(c, o, TE, 0, "trailers");
            o = hpack_field(c, o, TMO, 0, "5S");
            o = hpack_field(c, o, AUTHZ, 0, BEARER);
        } else {
            o = hpack_field(c, o, UA, 0, "python-httpx/0.27.0");
            o = hpack_field(c, o, ACC, 0, "application/json");
            o = hpack_field(c, o, ENC, 0, "gzip, deflate, br");
            o = hpack_field(c, o, AUTHZ, 0, BEARER);
        }
        o = hpack_field(c, o, RID, u, request_id);
        o = hpack_field(c, o, TP, u, traceparent);
        frame(c, o - b, 1, grpc ? 4 : 5, c->sid);
        bytes(c, b, o - b);
        if (grpc) {
            frame(c, sizeof msg, 0, 1, c->sid);
            bytes(c, msg, sizeof msg);
            c->send_window -= sizeof msg;
        }
        *t = (Stream){.sid = c->sid, .open = 1};
        c->sid += 2;
        c->in_flight++;
    }
}

// The status of a header block: an indexed field, or a literal of three digits, plain or Huffman-coded.
static int hpack_status(const unsigned char *p, size_t n) {
    while (n && (*p & 0xe0) == 0x20) {
        int big = (*p & 31) == 31;
        p++;
        n--;
        while (big && n && *p & 128)
            p++, n--;
        if (big && n) p++, n--;
    }
    static const int known[] = {200, 204, 206, 304, 400, 404, 500};
    if (n && *p >= 0x88 && *p <= 0x8e) return known[*p - 0x88];
    if (n >= 5 && (*p == 0x48 || *p == 0x08 || *p == 0x18) && p[1] == 3) return atoi((char *)p + 2);
    if (n >= 3 && (*p == 0x48 || *p == 0x08 || *p == 0x18) && p[1] & 128) { // three digits, Huffman
        unsigned v = 0, k = 0, s = 0;
        size_t m = p[1] & 127;
        for (int d = 0, i = 2; d < 3; d++) {
            while (k < 6 && i < 2 + (int)m && i < (int)n) {
                v = v << 8 | p[i++];
                k += 8;
            }
            unsigned five = v >> (k - 5) & 31;
            if (five < 3) {
                s = s * 10 + five;
                k -= 5;
            } else {
                s = s * 10 + (v >> (k - 6) & 63) - 0x19 + 3;
                k -= 6;
            }
        }
        return s;
    }
    return 0;
}

static void finish(Conn *c, Stream *t) {
    t->open = 0;
    c->in_flight--;
    int good = t->status == 200 && (grpc ? t->bytes == (long)sizeof msg && t->trailers : t->bytes == want_body);
    count(good, t->status == 200 ? 1000 : t->status);
}

// Reads the frames that are complete; 0 when the buffer is too small for what the peer sends.
static int feed_h2(Conn *c) {
    size_t o = 0;
    while (c->n - o >= 9) {
        unsigned char *h = c->in + o, *p = h + 9;
        uint32_t l = h[0] << 16 | h[1] << 8 | h[2], sid = (h[5] & 127) << 24 | h[6] << 16 | h[7] << 8 | h[8];
        if (c->n - o < 9 + l) break;
        int type = h[3], fl = h[4];
        Stream *t = &c->streams[sid >> 1 & (SLOTS - 1)];
        if (t->sid != sid || !t->open) t = 0;
        if (type == 0) {
            c->eaten += l;
            if (t) t->bytes += l - (fl & 8 ? 1 + p[0] : 0);
            if (c->eaten > 1 << 28) {
                unsigned char w[4] = {c->eaten >> 24, c->eaten >> 16, c->eaten >> 8, c->eaten};
                frame(c, 4, 8, 0, 0);
                bytes(c, w, 4);
                c->eaten = 0;
            }
        } else if (type == 1 && t) {
            int skip = (fl & 8 ? 1 : 0) + (fl & 32 ? 5 : 0);
            if (t->status >= 200)
                t->trailers = 1;
            else
                t->status = hpack_status(p + skip, l - skip);
        } else if (type == 3) {
            if (t) {
                t->status = 2000;
                finish(c, t);
            }
        } else if (type == 4 && !(fl & 1)) {
            for (uint32_t i = 0; i + 6 <= l; i += 6) {
                unsigned v = p[i + 2] << 24 | p[i + 3] << 16 | p[i + 4] << 8 | p[i + 5];
                if (p[i + 1] == 1 && v < c->dyn_max) {
                    c->dyn_max = v;
                    evict(c, v);
                    c->resize = 1;
                }
            }
            frame(c, 0, 4, 1, 0);
        } else if (type == 6 && !(fl & 1)) {
            frame(c, 8, 6, 1, 0);
            bytes(c, p, 8);
        } else if (type == 7)
            c->going = 1;
        else if (type == 8 && !sid)
            c->send_window += (p[0] & 127) << 24 | p[1] << 16 | p[2] << 8 | p[3];
        if (t && (type == 0 || type == 1) && fl & 1) finish(c, t);
        o += 9 + l;
    }
    memmove(c->in, c->in + o, c->n - o);
    c->n -= o;
    return c->n < H2_INPUT;
}
