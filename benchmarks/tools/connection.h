// Connections: their state, TLS, reading and writing.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "options.h"

enum { HEAD = 16 << 10, H2_INPUT = 1 << 18, SLOTS = 256 };
// One stream of HTTP/2.
typedef struct {
    uint32_t sid;
    int status, frames;
    long bytes;
    char open, trailers;
} Stream;
// One entry of the HPACK encoder's dynamic table.
typedef struct {
    int field;
    unsigned size;
} Entry;
typedef struct {
    int fd, busy;
    SSL *ssl;
    double scheduled; // when its request was due (open loop)
    long served;

    // HTTP/1.1: the response being read; `closing` when the server said that it is the last one
    char head[HEAD], tail[5];
    size_t head_size;
    long left;
    int chunked, status, closing;

    // HTTP/2: `going` after GOAWAY, `resize` while a change of the table size is to be told
    int in_flight, going, resize;
    unsigned char *in, out[1 << 16];
    size_t n, out_size;
    uint32_t sid;
    long send_window, eaten;
    Stream streams[SLOTS];
    Entry dyn[128]; // newest last
    unsigned dyn_count, dyn_size, dyn_max;
} Conn;

static SSL_CTX *tls;
static int epoll, port, h2, grpc, alive = 1;
static int any_octets; // of a body only the length is checked
static long max_streams, want_body, life; // life: requests after which a connection is replaced (0: never)
static long ok, bad, lost, reconnects, renewed, first_bad;
static char read_buffer[1 << 18];

static void die(const char *what) {
    printf("{\"fatal\":\"%s\"}\n", what);
    exit(3);
}

// The client side's TLS settings, from the files as they are now.
static SSL_CTX *load_tls(void) {
    const char *cert = arg("cert", 0), *ca = arg("ca", 0);
    if (!ca) return 0;
    SSL_CTX *new = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(new, TLS1_3_VERSION);
    // Without NO_AUTO_CHAIN the root goes along, which costs the server 100 us a handshake.
    SSL_CTX_set_mode(new, SSL_MODE_AUTO_RETRY | SSL_MODE_NO_AUTO_CHAIN);
    if (cert && (SSL_CTX_use_certificate_chain_file(new, cert) != 1 || SSL_CTX_use_PrivateKey_file(new, cert, 1) != 1))
        die("client certificate");
    if (SSL_CTX_load_verify_locations(new, ca, 0) != 1) die("ca");
    SSL_CTX_set_verify(new, SSL_VERIFY_PEER, 0);
    SSL_CTX_set_alpn_protos(new, (unsigned char *)(h2 ? "\2h2" : "\10http/1.1"), h2 ? 3 : 9);
    return new;
}

// Connects and shakes hands, blocking; 0 when it failed.
static Conn *dial(Conn *c) {
    int one = 1;
    struct sockaddr_in s = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval tv = {5, 0};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv);
    if (connect(c->fd, (void *)&s, sizeof s)) {
        close(c->fd);
        c->fd = -1;
        return 0;
    }
    if (tls) {
        c->ssl = SSL_new(tls);
        SSL_set_fd(c->ssl, c->fd);
        SSL_set_tlsext_host_name(c->ssl, "localhost");
        if (SSL_connect(c->ssl) != 1) {
            SSL_free(c->ssl);
            c->ssl = 0;
            close(c->fd);
            c->fd = -1;
            return 0;
        }
        const unsigned char *p;
        unsigned n;
        SSL_get0_alpn_selected(c->ssl, &p, &n);
        if (h2 && (n != 2 || memcmp(p, "h2", 2))) die("no h2 by ALPN");
    }
    return c;
}

// Ends a connection without a TIME_WAIT on this side.
static void hang_up(Conn *c) {
    struct linger l = {1, 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    if (c->ssl) {
        SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(c->ssl);
        c->ssl = 0;
    }
    close(c->fd);
    c->fd = -1;
}

static int send_all(Conn *c, const void *p, size_t n) {
    for (size_t o = 0; o < n;) {
        ssize_t w = c->ssl ? SSL_write(c->ssl, (char *)p + o, n - o) : send(c->fd, (char *)p + o, n - o, MSG_NOSIGNAL);
        if (w > 0) {
            o += w;
            continue;
        }
        if (c->ssl ? SSL_get_error(c->ssl, w) != SSL_ERROR_WANT_WRITE && SSL_get_error(c->ssl, w) != SSL_ERROR_WANT_READ
                   : errno != EAGAIN)
            return 0;
        struct pollfd f = {c->fd, POLLOUT, 0};
        if (poll(&f, 1, 2000) < 1) return 0;
    }
    return 1;
}

// Octets read, -1 when there is nothing now, 0 when the peer closed.
static ssize_t receive(Conn *c, void *p, size_t n) {
    ssize_t r = c->ssl ? SSL_read(c->ssl, p, n) : recv(c->fd, p, n, 0);
    if (r > 0) return r;
    if (c->ssl) {
        ERR_clear_error();
        return SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_READ ? -1 : 0;
    }
    return r < 0 && errno == EAGAIN ? -1 : 0;
}
