/* SPDX-License-Identifier: MIT */
/* Measures request and reply, and bulk, between two machnet stacks in one thread. One JSON object
 * per run. */
#include "pair.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PASSES_PER_CLOCK 64u
#define WARMUP_MSGS      2000u
#define CHECKED_MSGS     1000u

struct row {
    const char *name;
    struct work work;
};

/* The raw mode moves the prefix's four bytes as payload, so that all modes put the same bytes on
 * the wire. */
static const struct row rows[] = {
    {"64x1", {64, 1, false}},       {"64x8", {64, 8, false}},   {"64x32", {64, 32, false}},
    {"1024x32", {1024, 32, false}}, {"bulk", {8188, 64, true}},
};

void mn_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    abort();
}

_Noreturn void pair_fail(const char *why, int err)
{
    fprintf(stderr, "pair: %s: %s\n", why, strerror(err < 0 ? -err : err));
    exit(1);
}

void *pair_memory(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED) {
        pair_fail("mmap", errno);
    }
    return p;
}

void pair_fill(uint8_t *buf, uint32_t len, uint64_t n)
{
    memcpy(buf, &n, sizeof(n));
    if (n < CHECKED_MSGS) {
        for (uint32_t i = sizeof(n); i < len; i++) {
            buf[i] = (uint8_t)(i + n);
        }
    }
}

bool pair_check(const uint8_t *buf, uint32_t len, uint64_t n)
{
    if (memcmp(buf, &n, sizeof(n)) != 0) {
        return false;
    }
    for (uint32_t i = sizeof(n); n < CHECKED_MSGS && i < len; i++) {
        if (buf[i] != (uint8_t)(i + n)) {
            return false;
        }
    }
    return true;
}

void pair_poll(struct pair *p)
{
    mn_engine_poll(p->engine[0], p->now_ns);
    mn_engine_poll(p->engine[1], p->now_ns);
}

static uint64_t read_clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * MN_NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t clock_ns(void)
{
    return read_clock_ns(CLOCK_MONOTONIC);
}

/* Of this thread: what others do on its core does not count. */
static uint64_t cpu_ns(void)
{
    return read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void pair_open(struct pair *p, const struct mode *mode, const struct link_kind *link)
{
    struct mn_host host = {0};

    link->open(p->nic);
    for (uint32_t i = 0; i < 2; i++) {
        struct mn_config cfg;

        mn_config_defaults(&cfg);
        cfg.ip = i == 0 ? CLIENT_IP : SERVER_IP;
        cfg.flows_max = 64 + p->idle + p->cycles;
        cfg.rcv_buf_bytes = 256u << 10; /* the window that lwIP is given */
        cfg.timestamps = false;
        cfg.secret[0] = (uint8_t)(1 + i);
        uint64_t bytes = mn_engine_bytes(&cfg);
        int err = mn_engine_open(&p->engine[i], pair_memory(bytes), bytes, &cfg, p->nic[i], &host,
                                 p->now_ns);
        if (err != 0) {
            pair_fail("engine", err);
        }
    }
    mode->open(p);
}

struct options {
    const struct mode *mode;
    const struct link_kind *link;
    const struct row *row;
    double seconds;
    uint64_t messages; /* 0: run for `seconds` */
    uint32_t idle, cycles;
};

/* What idle connections cost is their part in each message, not how they came to be: so their
 * handshakes' timers, which are let run out rather than taken back, do so before it is measured. */
static void idle_open(struct pair *p, const struct options *o)
{
    o->mode->open_idle(p);
    for (uint32_t i = 0; i < 500 && o->messages != 0; i++) {
        p->now_ns += 10 * MN_NS_PER_MS;
        pair_poll(p);
    }
}

/* A run of so many messages has a clock that counts passes, so that two such runs execute the same
 * instructions. */
static void run_until(struct pair *p, const struct options *o, uint64_t target_msgs,
                      uint64_t end_ns)
{
    while (p->msgs < target_msgs && (o->messages != 0 || p->now_ns < end_ns)) {
        for (uint32_t i = 0; i < PASSES_PER_CLOCK; i++) {
            pair_poll(p);
            o->mode->step(p);
        }
        p->now_ns = o->messages != 0 ? p->now_ns + 20 * MN_NS_PER_US : clock_ns();
    }
}

static void run_cycles(struct pair *p, const struct options *o, uint64_t target)
{
    while (p->msgs < target) {
        o->mode->cycle(p);
        p->now_ns += 20 * MN_NS_PER_US;
    }
}

/* What callgrind is told to count by itself, by this function's name. */
__attribute__((noinline)) void pair_counted(struct pair *p, const struct options *o,
                                            uint64_t end_ns);

void pair_counted(struct pair *p, const struct options *o, uint64_t end_ns)
{
    uint64_t target = o->messages != 0 ? p->msgs + o->messages : UINT64_MAX;

    if (o->cycles != 0) {
        run_cycles(p, o, target);
    } else {
        run_until(p, o, target, end_ns);
    }
}

/* What one more flow takes of the engine's memory, of its lane's, and of what the lane shares with
 * the application, by the difference between many and twice as many. */
static void report_memory(void)
{
    const uint32_t flows = 32768;
    struct mn_config cfg[2];
    struct mn_chan_geometry geo[2];

    for (uint32_t i = 0; i < 2; i++) {
        mn_config_defaults(&cfg[i]);
        cfg[i].ip = CLIENT_IP;
        cfg[i].flows_max = flows << i;
        geo[i] = (struct mn_chan_geometry){.n_lanes = 1,
                                           .buf_bytes = 2048,
                                           .tx_bufs = 1024,
                                           .rx_bufs = 1024,
                                           .flows_max = (flows << i) / 2,
                                           .ctl_slots = 64};
    }
    printf("{\"engine_bytes_per_flow\": %.1f, \"lane_bytes_per_flow\": %.1f, "
           "\"shared_bytes_per_flow\": %.1f}\n",
           (double)(mn_engine_bytes(&cfg[1]) - mn_engine_bytes(&cfg[0])) / flows,
           (double)(mn_lane_priv_bytes(&geo[1]) - mn_lane_priv_bytes(&geo[0])) / (flows / 2.0),
           (double)(mn_chan_bytes(&geo[1]) - mn_chan_bytes(&geo[0])) / (flows / 2.0));
}

static void report(const struct pair *p, const struct options *o, uint64_t msgs, double seconds,
                   double cpu_seconds)
{
    const struct work *w = &o->row->work;
    double rate = (double)msgs / seconds;
    const struct mn_stats *a = mn_engine_stats(p->engine[0]), *b = mn_engine_stats(p->engine[1]);
    struct mn_usage usage;

    mn_engine_usage(p->engine[0], &usage);
    printf("{\"row\": \"%s\", \"peer\": \"machnet-%s\", \"nic\": \"%s\", \"work\": \"%s\", "
           "\"payload_bytes\": %u, "
           "\"window_msgs\": %u, "
           "\"mtu_bytes\": 1500, \"connections\": %u, \"seconds\": %.6f, \"msgs\": %" PRIu64
           ", \"msgs_total\": %" PRIu64 ", \"frames\": %" PRIu64 ", \"retransmits\": %" PRIu64
           ", \"ns_per_msg\": %.2f, \"cpu_ns_per_msg\": %.2f, \"msgs_per_s\": %.0f, "
           "\"gbit_per_s\": %.3f}\n",
           o->row->name, o->mode->name, o->link->name, w->bulk ? "bulk" : "request",
           w->payload_bytes, w->window_msgs, usage.tcbs, seconds, msgs, p->msgs,
           a->tx_frames + b->tx_frames, a->tcp_retransmits + b->tcp_retransmits, 1e9 / rate,
           1e9 * cpu_seconds / (double)msgs, rate, rate * (w->payload_bytes + 4) * 8 / 1e9);
}

static void run(const struct options *o)
{
    static struct pair pair;
    struct pair *p = &pair;

    p->work = o->row->work;
    p->idle = o->idle;
    p->cycles = o->cycles;
    p->now_ns = o->messages != 0 ? MN_NS_PER_S : clock_ns();
    pair_open(p, o->mode, o->link);
    if (o->cycles != 0) {
        run_cycles(p, o, 1);
    } else {
        run_until(p, o, o->messages != 0 ? 1 : WARMUP_MSGS, p->now_ns + 5 * MN_NS_PER_S);
    }
    if (p->msgs == 0) {
        pair_fail("no message came through", ETIMEDOUT);
    }
    if (p->idle != 0) {
        idle_open(p, o);
    }
    uint64_t before = p->msgs, start = clock_ns(), cpu_start = cpu_ns();
    p->now_ns = o->messages != 0 ? p->now_ns : start;
    pair_counted(p, o, start + (uint64_t)(o->seconds * 1e9));
    double cpu_s = (double)(cpu_ns() - cpu_start) / 1e9;
    report(p, o, p->msgs - before, (double)(clock_ns() - start) / 1e9, cpu_s);
    if (p->errors != 0) {
        pair_fail("messages came back wrong", EBADMSG);
    }
}

static void usage(FILE *to)
{
    fprintf(
        to,
        "usage: pair [--mode raw|framed] [--nic wire|ring] [--row 64x1|64x8|64x32|1024x32|bulk] "
        "[--seconds S] [--messages N] [--idle N] [--cycles N] [--eal ARG]...\n"
        "  --messages N  so many messages, in virtual time: the same instructions each time\n"
        "  --idle N      beside N further connections, on which nothing happens\n"
        "  --cycles N    open and close N connections in turn; no messages\n"
        "  --memory      only say what a connection takes\n"
        "  --nic ring    two ports of DPDK, joined by rings, instead of a wire\n"
        "  --eal ARG     an argument for DPDK's EAL\n");
}

static const struct row *row_named(const char *name)
{
    for (size_t i = 0; i < MN_ARRAY_LEN(rows); i++) {
        if (strcmp(rows[i].name, name) == 0) {
            return &rows[i];
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"mode", required_argument, NULL, 'm'},
        {"row", required_argument, NULL, 'r'},
        {"seconds", required_argument, NULL, 's'},
        {"messages", required_argument, NULL, 'n'},
        {"idle", required_argument, NULL, 'i'},
        {"cycles", required_argument, NULL, 'c'},
        {"memory", no_argument, NULL, 'b'},
        {"nic", required_argument, NULL, 'w'},
        {"eal", required_argument, NULL, 'e'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct options o = {.mode = &pair_framed, .link = &pair_wire, .row = &rows[0], .seconds = 1.0};
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'm':
            o.mode = strcmp(optarg, "raw") == 0      ? &pair_raw
                     : strcmp(optarg, "framed") == 0 ? &pair_framed
                                                     : NULL;
            break;
        case 'w':
            o.link = strcmp(optarg, "wire") == 0   ? &pair_wire
                     : strcmp(optarg, "ring") == 0 ? &pair_ring
                                                   : NULL;
            break;
        case 'e':
            if (pair_n_eal_args == EAL_ARGS_MAX) {
                pair_fail("--eal", E2BIG);
            }
            pair_eal_args[pair_n_eal_args++] = optarg;
            break;
        case 'r':
            o.row = row_named(optarg);
            break;
        case 's':
            o.seconds = atof(optarg);
            break;
        case 'n':
            o.messages = strtoull(optarg, NULL, 10);
            break;
        case 'i':
            o.idle = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'c':
            o.cycles = (uint32_t)strtoul(optarg, NULL, 10);
            o.messages = o.cycles;
            break;
        case 'b':
            report_memory();
            return 0;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (o.mode == NULL || o.link == NULL || o.row == NULL || o.seconds <= 0 || o.idle > 900000 ||
        o.cycles > 100000) {
        usage(stderr);
        return 2;
    }
    mn_csum_select(__builtin_cpu_supports("avx2") ? MN_CPU_AVX2 : 0);
    run(&o);
    return 0;
}
