// upstream PORT_H1 PORT_H2 [FILE...]: the server behind every proxy under test, one thread, loopback only.
// HTTP/1.1 port: 200 with about 480 bytes (256 of body), or a body of N bytes for a target with "size=N", or the Nth FILE
// (from 0) for one with "file=N"; an empty
// one for a POST to /v1/..., which is a valid answer of an OTLP collector that swallows what it gets.
// HTTP/2 port (cleartext, prior knowledge): answers each stream as a gRPC unary call with a 64 byte message.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BODY_MAX = 4 << 20, FILES_MAX = 16, IN_MAX = 128 << 10, MSG = 64 };

typedef struct {
    int fd, h2, preface, want_out;
    size_t n, skip, out_size, out_cap;
    long window, unacked; // HTTP/2: what we may send, what we consumed
    uint32_t *wait;
    int waiting, wait_cap; // HTTP/2: streams waiting for window
    char *out, in[IN_MAX];
} Conn;

static int epoll, one = 1, files;
static char body[BODY_MAX], *file[FILES_MAX];
static size_t file_size[FILES_MAX];

static void put(Conn *c, const void *p, size_t n) {
    if (c->out_size + n > c->out_cap) {
        c->out_cap = (c->out_size + n) * 2;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_size, p, n);
    c->out_size += n;
}

// Sends what it can; 0 when the connection is dead.
static int flush(Conn *c) {
    size_t o = 0;
    while (o < c->out_size) {
        ssize_t w = send(c->fd, c->out + o, c->out_size - o, MSG_NOSIGNAL);
        if (w < 0) {
            if (errno == EAGAIN) break;
            return 0;
        }
        o += w;
    }
    memmove(c->out, c->out + o, c->out_size - o);
    c->out_size -= o;
    int want = c->out_size > 0;
    if (want != c->want_out) {
        struct epoll_event e = {.events = want ? EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
        c->want_out = want;
    }
    return 1;
}

static void answer_h1(Conn *c, const char *from, size_t len) {
    char head[512];
    int n = snprintf(head, sizeof head,
        "HTTP/1.1 200 OK\r\nServer: upstream/1.0\r\nDate: Thu, 20 Nov 2025 22:46:55 GMT\r\nContent-Type: "
        "application/json\r\nContent-Length: %zu\r\n"
        "Cache-Control: no-store\r\nX-Request-Id: 7f3c0a52-8d2e-4c57-9d5e-0c6b8f0a1b2c\r\nVary: "
        "Accept-Encoding\r\n\r\n",
        len);
    put(c, head, n);
    put(c, from, len);
}

static int feed_h1(Conn *c) {
    size_t off = 0;
    while (off < c->n) {
        if (c->skip) {
            size_t t = c->n - off < c->skip ? c->n - off : c->skip;
            off += t;
            c->skip -= t;
            continue;
        }
        char *s = c->in + off, *end = memmem(s, c->n - off, "\r\n\r\n", 4);
        if (!end) break;
        char *line = memchr(s, '\n', end - s + 2), keep = *end;
        *end = 0;
        char *nth = memmem(s, line - s, "file=", 5), *size = memmem(s, line - s, "size=", 5), *cl = *s == 'P' ? strcasestr(s, "\ncontent-length:") : 0;
        size_t len = size ? strtoul(size + 5, 0, 10) : !strncmp(s, "POST /v1/", 9) ? 0 : 256;
        c->skip = cl ? strtoul(cl + 16, 0, 10) : 0;
        *end = keep;
        off = end + 4 - c->in;
        int k = nth ? atoi(nth + 5) : -1;
        if (k >= 0 && k < files)
            answer_h1(c, file[k], file_size[k]);
        else
            answer_h1(c, body, len > BODY_MAX ? BODY_MAX : len);
    }
    memmove(c->in, c->in + off, c->n - off);
    c->n -= off;
    return c->n < IN_MAX;
}

static void frame(Conn *c, uint32_t len, int type, int flags, uint32_t sid) {
    unsigned char h[9] = {len >> 16, len >> 8, len, type, flags, sid >> 24, sid >> 16, sid >> 8, sid};
    put(c, h, 9);
}

static void answer_h2(Conn *c, uint32_t sid) {
    static const char head[] = "\x88\x0f\x10\x10"
                               "application/grpc"; // :status 200, content-type
    static const char tail[] = "\x00\x0bgrpc-status\x01"
                               "0"; // grpc-status 0
    static char msg[5 + MSG] = {0, 0, 0, 0, MSG};
    frame(c, sizeof head - 1, 1, 4, sid);
    put(c, head, sizeof head - 1);
    frame(c, sizeof msg, 0, 0, sid);
    put(c, msg, sizeof msg);
    c->window -= sizeof msg;
    frame(c, sizeof tail - 1, 1, 5, sid);
    put(c, tail, sizeof tail - 1);
}

static void answer_or_wait(Conn *c, uint32_t sid) {
    if (c->window >= 5 + MSG) {
        answer_h2(c, sid);
        return;
    }
    if (c->waiting == c->wait_cap) c->wait = realloc(c->wait, (c->wait_cap = c->wait_cap * 2 + 64) * sizeof *c->wait);
    c->wait[c->waiting++] = sid;
}

static int feed_h2(Conn *c) {
    size_t off = 0;
    if (!c->preface) {
        if (c->n < 24) return 1;
        if (memcmp(c->in, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24)) return 0;
        off = 24;
        c->preface = 1;
        frame(c, 12, 4, 0, 0);
        put(c,
            "\0\3\0\0\4\0"
            "\0\4\0\x0f\xff\xff",
            12); // 1024 streams, 1 MiB stream window
        frame(c, 4, 8, 0, 0);
        put(c, "\0\x0f\xff\xff", 4);
    }
    while (c->n - off >= 9) {
        unsigned char *h = (unsigned char *)c->in + off, *p = h + 9;
        uint32_t len = h[0] << 16 | h[1] << 8 | h[2], sid = (h[5] & 127) << 24 | h[6] << 16 | h[7] << 8 | h[8];
        int type = h[3], fl = h[4];
        if (len > 16384) return 0;
        if (c->n - off < 9 + len) break;
        if ((type == 0 || type == 1) && fl & 1) answer_or_wait(c, sid);
        if (type == 0) {
            c->unacked += len;
            if (c->unacked > 1 << 17) {
                unsigned char u[4] = {c->unacked >> 24, c->unacked >> 16, c->unacked >> 8, c->unacked};
                frame(c, 4, 8, 0, 0);
                put(c, u, 4);
                c->unacked = 0;
            }
        }
        if (type == 4 && !(fl & 1)) frame(c, 0, 4, 1, 0);
        if (type == 6 && !(fl & 1)) {
            frame(c, 8, 6, 1, 0);
            put(c, p, 8);
        }
        if (type == 8 && !sid) c->window += (p[0] & 127) << 24 | p[1] << 16 | p[2] << 8 | p[3];
        off += 9 + len;
    }
    int k = 0;
    while (k < c->waiting && c->window >= 5 + MSG)
        answer_h2(c, c->wait[k++]);
    memmove(c->wait, c->wait + k, (c->waiting - k) * sizeof *c->wait);
    c->waiting -= k;
    memmove(c->in, c->in + off, c->n - off);
    c->n -= off;
    return c->n < IN_MAX;
}

static int listen_on(int port, intptr_t tag) {
    int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(l, (void *)&a, sizeof a) || listen(l, 1024)) {
        perror("bind");
        exit(1);
    }
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = tag};
    epoll_ctl(epoll, EPOLL_CTL_ADD, l, &e);
    return l;
}

int main(int ac, char **av) {
    if (ac < 3) return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    memset(body, 'x', sizeof body);
    for (; files < ac - 3 && files < FILES_MAX; files++) {
        FILE *f = fopen(av[3 + files], "rb");
        file[files] = malloc(BODY_MAX);
        if (!f || !file[files]) {
            perror(av[3 + files]);
            return 1;
        }
        file_size[files] = fread(file[files], 1, BODY_MAX, f);
        fclose(f);
    }
    epoll = epoll_create1(0);
    int l[2] = {listen_on(atoi(av[1]), 0), listen_on(atoi(av[2]), 1)};
    struct epoll_event evs[256];
    for (;;) {
        int k = epoll_wait(epoll, evs, 256, -1);
        for (int i = 0; i < k; i++) {
            if (evs[i].data.u64 < 2) {
                int tag = evs[i].data.u64, fd;
                while ((fd = accept4(l[tag], 0, 0, SOCK_NONBLOCK)) >= 0) {
                    Conn *c = calloc(1, sizeof *c);
                    c->fd = fd;
                    c->h2 = tag;
                    c->window = 65535;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
                    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            Conn *c = evs[i].data.ptr;
            int live = 1;
            if (!c->want_out) {
                ssize_t r = recv(c->fd, c->in + c->n, IN_MAX - c->n, 0);
                if (r > 0) {
                    c->n += r;
                    live = c->h2 ? feed_h2(c) : feed_h1(c);
                } else if (!(r < 0 && errno == EAGAIN))
                    live = 0;
            }
            if (live) live = flush(c);
            if (!live) {
                close(c->fd);
                free(c->out);
                free(c->wait);
                free(c);
            }
        }
    }
}
