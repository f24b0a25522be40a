// The requests: each with a unique id and trace id; a share of them carries the sampled flag.
#pragma once
#include "connection.h"

static uint64_t random_state;
static uint64_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 2685821657736338717ull;
}

static const char HEX[] = "0123456789abcdef";
static void hex(char *p, uint64_t v, int n) {
    while (n--) {
        p[n] = HEX[v & 15];
        v >>= 4;
    }
}

static long sequence;
static uint64_t trace_below;
static int path_count;
static char path[256];
static char request_id[] = "00000000-8d2e-4c57-9d5e-000000000000";
static char traceparent[] = "00-00000000000000000000000000000000-0000000000000000-00";
static char *path_digits;
static void next_ids(void) {
    sequence++;
    int k = sequence % path_count;
    if (path_digits) {
        path_digits[0] = '0' + k / 10;
        path_digits[1] = '0' + k % 10;
    }
    hex(request_id + 24, sequence, 12);
    hex(traceparent + 3, next_random(), 16);
    hex(traceparent + 19, next_random(), 16);
    hex(traceparent + 36, next_random() | 1, 16);
    traceparent[54] = next_random() >> 11 < trace_below ? '1' : '0';
}

#define JWT_HEAD "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
#define JWT_REST "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
#define BEARER "Bearer " JWT_HEAD JWT_REST
static const char *host;
static char request[2048];
static size_t request_size;
static char *in_path, *in_id, *in_traceparent;
static void init_request(void) {
    host = arg("host", "orders.prod.svc.cluster.local:8080");
    path_count = num("paths", 50);
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    random_state = t.tv_nsec * 7919ull ^ t.tv_sec << 20 ^ getpid();
    next_random();
    hex(request_id, next_random(), 8);
    double share = num("trace", 0.01);
    trace_below = share * 9007199254740992.0;
    if (grpc)
        snprintf(path, sizeof path, "%s", arg("path", "/orders.v1.Orders/Get"));
    else {
        int d = snprintf(path, sizeof path, "%s", arg("path", "/api/v1/orders/"));
        if (path_count > 1) path_digits = path + d;
        snprintf(path + d, sizeof path - d, "%s?expand=items%s%s%s%s", path_count > 1 ? "00" : "42",
            arg("size", 0) ? "&size=" : "", arg("size", ""), arg("file", 0) ? "&file=" : "", arg("file", ""));
    }
    request_size = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: python-httpx/0.27.0\r\nAccept: "
        "application/json\r\nAccept-Encoding: gzip, deflate, br\r\n"
        "Connection: keep-alive\r\nAuthorization: " BEARER "\r\nX-Request-Id: %s\r\ntraceparent: %s\r\n\r\n",
        path, host, request_id, traceparent);
    in_path = request + 4;
    in_id = strstr(request, "X-Request-Id: ") + 14;
    in_traceparent = strstr(request, "traceparent: ") + 13;
}
