// KEY=VALUE arguments, and the clock.
#pragma once
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int arg_count;
static char **arg_values;
static const char *arg(const char *key, const char *dflt) {
    size_t n = strlen(key);
    for (int i = 1; i < arg_count; i++)
        if (!strncmp(arg_values[i], key, n) && arg_values[i][n] == '=') return arg_values[i] + n + 1;
    return dflt;
}

static double num(const char *key, double dflt) {
    const char *s = arg(key, 0);
    return s ? atof(s) : dflt;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
