// load KEY=VALUE...: one bounded load on one proxy port of the loopback, one thread; prints one JSON object.
//   mode=h1|h2|grpc   closed loop over `conns` connections (h2, grpc: times `streams`)
//   mode=rate         HTTP/1.1 open loop, Poisson arrivals at `rate` a second, latency from the scheduled time
//   mode=hs           one full TLS handshake plus one request after another
//   mode=idle         opens `conns` connections with one request each, prints {"ready":N}, waits for the end of stdin
// port secs warm conns streams rate; cert=PEM with key and chain, ca=PEM (given: TLS); host path paths size file body trace
// any=1: of a body only the length (body=N) is checked, not that it is all x; what it holds is looked at before the load.
// life=N: the connections are replaced after N requests each, with the certificate file as it is then.
// SIGTERM ends the measured window early.
// pids=1,2 core=1: CPU of these processes and busy time of the core over the measured window.
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <sys/prctl.h>
#include "cpu.h"
#include "http2.h"

static int open_conn(Conn *c) {
    unsigned char *in = c->in;
    memset(c, 0, sizeof *c);
    c->in = in;
    if (!dial(c)) return 0;
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e);
    if (h2) {
        if (!c->in) c->in = malloc(H2_INPUT);
        c->sid = 1;
        c->send_window = 65535;
        c->dyn_max = 4096;
        bytes(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
        frame(c, 12, 4, 0, 0);
        bytes(c,
            "\0\2\0\0\0\0"
            "\0\4\x3f\xff\xff\xff",
            12);
        frame(c, 4, 8, 0, 0);
        bytes(c, "\x3f\xff\0\0", 4);
    }
    return 1;
}

// Replaces a connection that is at its planned end by one with the certificate of now; no answer is outstanding on it.
static void renew(Conn *c) {
    if (life) {
        SSL_CTX *old = tls;
        tls = load_tls();
        SSL_CTX_free(old); // connections hold their own reference
    }
    hang_up(c);
    renewed++;
    if (!open_conn(c)) {
        lost++;
        alive = 0;
    }
}

// True when the server announced the end of the connection, or its life is over.
static int is_over(const Conn *c) {
    return c->closing || (life && c->served >= life);
}

// Replaces a connection that broke.
static void reopen(Conn *c) {
    if (c->busy || c->in_flight) lost++;
    hang_up(c);
    reconnects++;
    if (reconnects > 2000 || !open_conn(c)) {
        lost++;
        alive = 0;
    }
}

// Reads all there is; returns the number of completed HTTP/1.1 responses, or -1 when the connection was lost.
static int drain(Conn *c) {
    int fin = 0;
    for (;;) {
        ssize_t r = h2 ? receive(c, c->in + c->n, H2_INPUT - c->n) : receive(c, read_buffer, sizeof read_buffer);
        if (r < 0) return fin;
        if (r == 0) return -1;
        if (h2) {
            c->n += r;
            if (!feed_h2(c)) return -1;
        } else {
            int k = c->busy ? feed_h1(c, read_buffer, r) : -1;
            if (k < 0) {
                lost++;
                c->busy = 0;
                return -1;
            }
            if (k) {
                c->busy = 0;
                c->served++;
                fin++;
                count(c->status / 100 == 2, c->status);
            }
        }
        if (!c->ssl && !h2 && !c->left && !c->chunked) return fin;
        if (!c->ssl && h2) return fin;
        if (c->ssl && !SSL_has_pending(c->ssl)) return fin; // level-triggered epoll tells about the rest
    }
}

// The measured window ends now (SIGTERM).
static volatile sig_atomic_t enough;
static void end_window(int signum) {
    (void)signum;
    enough = 1;
}

static Cpu cpu_before;
static double window_start;
static long ok_before, bad_before, lost_before;
static void window_opens(void) {
    cpu_before = cpu();
    window_start = now();
    ok_before = ok;
    bad_before = bad;
    lost_before = lost;
}

static void report(const char *extra) {
    double w = now() - window_start;
    Cpu c = cpu();
    printf("{\"n\":%ld,\"bad\":%ld,\"lost\":%ld,\"first_bad\":%ld,\"reconnects\":%ld,\"renewed\":%ld,\"secs\":%.4f,",
        ok - ok_before, bad - bad_before, lost - lost_before, first_bad, reconnects, renewed, w);
    printf("\"cpu_s\":%.6f,\"main_s\":%.6f,\"user_s\":%.2f,\"sys_s\":%.2f,\"core_s\":%.2f%s}\n", c.run - cpu_before.run,
        c.main - cpu_before.main, c.user - cpu_before.user, c.sys - cpu_before.sys, c.core - cpu_before.core, extra);
}

static void closed_loop(double secs, double warm, int conns) {
    for (int i = 0; i < conns; i++) {
        Conn *c = calloc(1, sizeof *c);
        if (!open_conn(c)) die("cannot connect");
        if (h2) {
            fill(c);
            if (!send_all(c, c->out, c->out_size)) die("cannot send");
            c->out_size = 0;
        } else if (!send_h1(c))
            die("cannot send");
    }
    struct epoll_event evs[64];
    double t0 = now();
    int opened = 0;
    while (alive) {
        double t = now();
        if (!opened && t - t0 >= warm) {
            opened = 1;
            window_opens();
        }
        if (enough || (opened && t - window_start >= secs)) break;
        int k = epoll_wait(epoll, evs, 64, 50);
        for (int i = 0; i < k && alive; i++) {
            Conn *c = evs[i].data.ptr;
            int r = drain(c);
            if (r < 0) {
                reopen(c);
                if (!alive) break;
                if (!h2 && !send_h1(c)) lost++;
            } else if (!h2 && r > 0) {
                if (is_over(c)) renew(c);
                if (!alive) break;
                if (!send_h1(c)) {
                    c->busy = 0;
                    reopen(c);
                }
            }
            if (!h2) continue;
            if (c->going && !c->in_flight) {
                reopen(c);
                if (!alive) break;
            }
            fill(c);
            if (c->out_size) {
                if (!send_all(c, c->out, c->out_size)) reopen(c);
                c->out_size = 0;
            }
        }
    }
    if (!opened) window_opens();
    report("");
}

static int ascending(const void *a, const void *b) {
    double x = *(double *)a, y = *(double *)b;
    return (x > y) - (x < y);
}

static void open_loop(double secs, double warm, int conns, double rate) {
    Conn **idle = calloc(conns, sizeof *idle);
    int ni = 0;
    for (int i = 0; i < conns; i++) {
        Conn *c = calloc(1, sizeof *c);
        if (!open_conn(c)) die("cannot connect");
        idle[ni++] = c;
    }
    long cap = rate * (secs + warm) * 1.5 + 1000, qh = 0, qt = 0, n = 0;
    double *q = malloc(cap * 8), *L = malloc(cap * 8);
    prctl(PR_SET_TIMERSLACK, 1);
    double t0 = now(), next = t0;
    int opened = 0;
    struct epoll_event evs[64];
    while (alive) {
        double t = now();
        if (!opened && t - t0 >= warm) {
            opened = 1;
            window_opens();
        }
        if (enough || (opened && t - window_start >= secs)) break;
        while (next <= t && qt < cap) {
            q[qt++] = next;
            next += -log(((next_random() >> 11) + 1) / 9007199254740993.0) / rate;
        }
        while (qh < qt && ni) {
            Conn *c = idle[--ni];
            c->scheduled = q[qh++];
            if (!send_h1(c)) {
                c->busy = 0;
                reopen(c);
            }
        }
        double gap = next - now();
        if (gap < 0) gap = 0;
        if (gap > .05) gap = .05;
        struct timespec ts = {0, gap * 1e9};
        int k = epoll_pwait2(epoll, evs, 64, &ts, 0);
        for (int i = 0; i < k && alive; i++) {
            Conn *c = evs[i].data.ptr;
            int was = c->busy, r = drain(c);
            if (r < 0) {
                reopen(c); // an idle connection may end: nothing was lost, and it is still in the pool
                if (was) idle[ni++] = c;
                continue;
            }
            if (r) {
                if (opened && c->scheduled >= window_start && n < cap) L[n++] = (now() - c->scheduled) * 1e6;
                if (is_over(c)) renew(c);
                idle[ni++] = c;
            }
        }
    }
    if (!opened) window_opens();
    char x[256];
    qsort(L, n, 8, ascending);
    long m = n ? n : 1;
    if (!n) L[0] = 0;
    snprintf(x, sizeof x, ",\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f,\"backlog\":%ld",
        L[m / 2], L[m * 9 / 10], L[m * 99 / 100], L[(long)(m * .999)], L[m - 1], qt - qh);
    report(x);
}

static int one_request(Conn *c) {
    if (!send_h1(c)) return 0;
    for (;;) {
        ssize_t r = receive(c, read_buffer, sizeof read_buffer);
        if (r <= 0) return 0;
        int k = feed_h1(c, read_buffer, r);
        if (k < 0) return 0;
        if (k) {
            c->busy = 0;
            count(c->status / 100 == 2, c->status);
            return 1;
        }
    }
}

static void handshakes(double secs, double warm) {
    Conn *c = calloc(1, sizeof *c);
    double t0 = now();
    int opened = 0;
    long reused = 0;
    for (;;) {
        double t = now();
        if (!opened && t - t0 >= warm) {
            opened = 1;
            window_opens();
            reused = 0;
        }
        if (enough || (opened && t - window_start >= secs)) break;
        if (!dial(c)) {
            lost++;
            if (lost > 1000) break;
            usleep(1000);
            continue;
        }
        reused += c->ssl && SSL_session_reused(c->ssl);
        if (!one_request(c)) lost++;
        hang_up(c);
    }
    if (!opened) window_opens();
    char x[64];
    snprintf(x, sizeof x, ",\"reused\":%ld", reused);
    report(x);
}

static void idle_conns(int conns) {
    window_opens();
    int n = 0;
    for (int i = 0; i < conns; i++) {
        Conn *c = calloc(1, sizeof *c);
        if (!dial(c)) {
            lost++;
            continue;
        }
        if (one_request(c))
            n++;
        else
            lost++;
    }
    printf("{\"ready\":%d,\"bad\":%ld,\"lost\":%ld}\n", n, bad, lost);
    fflush(stdout);
    char b[64];
    while (read(0, b, sizeof b) > 0) {}
}

int main(int argc, char **argv) {
    arg_count = argc;
    arg_values = argv;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *mode = arg("mode", "h1");
    if (strcmp(mode, "idle")) signal(SIGTERM, end_window);
    double secs = num("secs", 3), warm = num("warm", .3);
    int conns = num("conns", 32);
    alarm(secs + warm + 60);
    port = num("port", 0);
    max_streams = num("streams", 10);
    if (max_streams > SLOTS / 2) max_streams = SLOTS / 2;
    grpc = !strcmp(mode, "grpc");
    h2 = grpc || !strcmp(mode, "h2");
    want_body = num("body", num("size", 256));
    any_octets = num("any", 0);
    life = num("life", 0);
    tls = load_tls();
    init_request();
    epoll = epoll_create1(0);
    if (h2 || !strcmp(mode, "h1"))
        closed_loop(secs, warm, conns);
    else if (!strcmp(mode, "rate"))
        open_loop(secs, warm, conns, num("rate", 4000));
    else if (!strcmp(mode, "hs"))
        handshakes(secs, warm);
    else if (!strcmp(mode, "idle"))
        idle_conns(conns);
    else
        die("mode");
    return 0;
}
