// HTTP/1.1: sending the request, reading and checking the response.
#pragma once
#include <strings.h>
#include "request.h"

static int send_h1(Conn *c) {
    next_ids();
    memcpy(in_path, path, strlen(path));
    memcpy(in_id, request_id, 36);
    memcpy(in_traceparent, traceparent, 55);
    c->head_size = 0;
    c->status = 0;
    c->busy = 1;
    return send_all(c, request, request_size);
}

// Counts an answer; a status of 1000 is a 200 with the wrong body, 2000 a reset stream, -1 none at all.
static void count(int good, int status) {
    if (good)
        ok++;
    else {
        bad++;
        if (!first_bad) first_bad = status ? status : -1;
    }
}

// Feeds response bytes; 1 when the response is complete, -1 when it makes no sense.
static int feed_h1(Conn *c, const char *p, size_t n) {
    if (!c->status) {
        size_t t = n < HEAD - 1 - c->head_size ? n : HEAD - 1 - c->head_size;
        memcpy(c->head + c->head_size, p, t);
        c->head_size += t;
        char *e = memmem(c->head, c->head_size, "\r\n\r\n", 4);
        if (!e) return c->head_size < HEAD - 1 ? 0 : -1;
        if (memcmp(c->head, "HTTP/1.1 ", 9)) return -1;
        size_t used = e + 4 - c->head - (c->head_size - t);
        *e = 0;
        c->status = atoi(c->head + 9);
        c->chunked = 0;
        c->left = 0;
        char *cl = strcasestr(c->head, "\ncontent-length:");
        if (cl)
            c->left = atol(cl + 16);
        else if (strcasestr(c->head, "\ntransfer-encoding: chunked"))
            c->chunked = 1;
        c->closing = !!strcasestr(c->head, "\nconnection: close");
        c->eaten = 0;
        memset(c->tail, 0, 5);
        p += used;
        n -= used;
        if (!c->chunked && c->left != want_body && c->status == 200) c->status = 1000;
    }
    if (c->chunked) {
        c->eaten += n;
        size_t k = n < 5 ? n : 5;
        memmove(c->tail, c->tail + k, 5 - k);
        memcpy(c->tail + 5 - k, p + n - k, k);
        return !memcmp(c->tail, "0\r\n\r\n", 5) ? 1 : 0;
    }
    if ((long)n > c->left) return -1;
    for (size_t i = 0; i < n && c->status == 200 && !any_octets; i++)
        if (p[i] != 'x') c->status = 1000; // the upstream's bodies are all x, but for its files
    c->left -= n;
    return c->left == 0;
}
