// CPU of the proxy, read by the load generator itself so that it covers exactly the measured window.
#pragma once
#include <dirent.h>
#include <stdio.h>
#include <unistd.h>
#include "options.h"

// Seconds: all threads, the main threads alone, ticks of user and system time, and the busy time of the whole core.
typedef struct {
    double run, main, user, sys, core;
} Cpu;
static Cpu cpu(void) {
    Cpu r = {0};
    char path[300], buf[4096];
    double tick = 1.0 / sysconf(_SC_CLK_TCK);
    for (const char *p = arg("pids", ""); *p;) {
        int pid = strtol(p, (char **)&p, 10);
        if (*p == ',') p++;
        snprintf(path, sizeof path, "/proc/%d/task", pid);
        DIR *d = opendir(path);
        struct dirent *e;
        while (d && (e = readdir(d))) {
            if (e->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "/proc/%d/task/%.32s/schedstat", pid, e->d_name);
            FILE *f = fopen(path, "r");
            unsigned long long ns;
            if (f) {
                if (fscanf(f, "%llu", &ns) == 1) {
                    r.run += ns / 1e9;
                    if (atoi(e->d_name) == pid) r.main += ns / 1e9;
                }
                fclose(f);
            }
        }
        if (d) closedir(d);
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        size_t n = fread(buf, 1, sizeof buf - 1, f);
        buf[n] = 0;
        fclose(f);
        char *q = strrchr(buf, ')');
        unsigned long u, s;
        if (q && sscanf(q + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &s) == 2) {
            r.user += u * tick;
            r.sys += s * tick;
        }
    }
    char want[16];
    int n = snprintf(want, sizeof want, "cpu%s ", arg("core", "-"));
    FILE *f = fopen("/proc/stat", "r");
    while (f && fgets(buf, sizeof buf, f)) {
        unsigned long v[8];
        if (!strncmp(buf, want, n) &&
            sscanf(buf + n, "%lu %lu %lu %lu %lu %lu %lu %lu", v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7) == 8)
            r.core = (v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) * tick;
    }
    if (f) fclose(f);
    return r;
}
