/* SPDX-License-Identifier: MIT */
/*
 * channel rows MODE SECONDS        prints one JSON object for each row
 * channel serve SOCKET JOB LENGTH  is the engine's end for somebody else, whom it sends the
 * descriptors
 */
#include "channel.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAMPLES (1u << 16)
#define MANY    32u

static const struct mn_chan_geometry geo = {.n_lanes = 1,
                                            .buf_bytes = 2048,
                                            .tx_bufs = 1024,
                                            .rx_bufs = 1024,
                                            .flows_max = 16,
                                            .ctl_slots = 64};

struct mode {
    const char *name;
    uint64_t app_spin_ns, engine_spin_ns;
};
static const struct mode modes[] = {
    {"spinning", UINT64_MAX, UINT64_MAX},
    {"adaptive", 20 * MN_NS_PER_US, 50 * MN_NS_PER_US},
    {"sleeping", 0, 0},
};

static uint32_t samples[SAMPLES];

/* Rates by windows of some thousand messages: on a machine with other work the best of them says
 * what the channel can do, the whole what became of it. */
struct rate {
    uint64_t start_ns, last_ns, n, last_n;
    double best_per_s;
};

static bool rate_window(struct rate *r, uint64_t n, double seconds)
{
    uint64_t now_ns = mn_host_now_ns();

    r->n += n;
    if (r->n - r->last_n >= 4096) {
        double per_s = (double)(r->n - r->last_n) * 1e9 / (double)(now_ns - r->last_ns);

        r->best_per_s = per_s > r->best_per_s ? per_s : r->best_per_s;
        r->last_n = r->n;
        r->last_ns = now_ns;
    }
    return now_ns - r->start_ns < (uint64_t)(seconds * 1e9);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* A channel with an engine's end in a child of ours. */
static struct mn_chan *begin(const struct mode *mode, enum bench_job job, uint32_t len,
                             pid_t *child)
{
    struct bench_fds fds;
    void *region = bench_make(&fds, &geo);
    struct mn_chan *c;
    uint32_t id;
    int rc;

    *child = fork();
    if (*child == 0) {
        close(fds.app.wake);
        bench_engine(region, &geo, &fds, job, len, mode->engine_spin_ns);
    }
    close(fds.wake);
    close(fds.epoll);
    rc = mn_chan_attach(&c, &fds.app, mode->app_spin_ns);
    if (rc < 0) {
        bench_fail("attach", rc);
    }
    while (mn_chan_flows(c, &id, 1) == 0) {
        (void)mn_chan_wait(c, MN_NS_PER_S);
    }
    return c;
}

static void end(struct mn_chan *c, pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    mn_chan_close(c, 0);
    mn_chan_free(c);
}

/* The next message; sleeps as the mode says. */
static int64_t next(struct mn_chan *c, void *buf, uint64_t size)
{
    struct mn_chan_event event;
    int64_t rc;

    while ((rc = mn_chan_recv(c, buf, size, &event)) == -EAGAIN) {
        (void)mn_chan_wait(c, MN_NS_PER_S);
    }
    if (rc < 0) {
        bench_fail("recv", (int)rc);
    }
    return rc;
}

static void round_trips(const struct mode *mode, uint32_t len, double seconds)
{
    uint8_t out[2048] = {0}, in[2048];
    uint64_t start_ns, stop_ns, n = 0;
    pid_t child;
    struct mn_chan *c = begin(mode, BENCH_ECHO, len, &child);

    for (uint32_t i = 0; i < 1000; i++) {
        mn_chan_send(c, BENCH_FLOW, out, len);
        next(c, in, sizeof(in));
    }
    start_ns = mn_host_now_ns();
    do {
        uint64_t a_ns = mn_host_now_ns();

        mn_chan_send(c, BENCH_FLOW, out, len);
        next(c, in, sizeof(in));
        stop_ns = mn_host_now_ns();
        samples[n++ % SAMPLES] = (uint32_t)(stop_ns - a_ns);
    } while (stop_ns - start_ns < (uint64_t)(seconds * 1e9));
    end(c, child);
    uint32_t have = (uint32_t)mn_min_u64(n, SAMPLES);
    qsort(samples, have, sizeof(samples[0]), by_value);
    printf(
        "{\"row\": \"round trip\", \"mode\": \"%s\", \"len\": %u, \"ns_p50\": %u, \"ns_p99\": %u, "
        "\"hop_ns_p50\": %u, \"per_s\": %.0f}\n",
        mode->name, len, samples[have / 2], samples[(uint64_t)have * 99 / 100],
        samples[have / 2] / 2, (double)n * 1e9 / (double)(stop_ns - start_ns));
}

static void report_rate(const char *row, const struct mode *mode, uint32_t len,
                        const struct rate *r)
{
    double whole = (double)r->n * 1e9 / (double)(mn_host_now_ns() - r->start_ns);

    printf("{\"row\": \"%s\", \"mode\": \"%s\", \"len\": %u, \"per_s\": %.0f, "
           "\"best_per_s\": %.0f}\n",
           row, mode->name, len, whole, r->best_per_s);
}

static void one_way_out(const struct mode *mode, uint32_t len, double seconds)
{
    static uint8_t out[MANY * 2048];
    uint32_t lens[MANY];
    pid_t child;
    struct mn_chan *c = begin(mode, BENCH_SINK, len, &child);
    struct rate rate = {.start_ns = mn_host_now_ns(), .last_ns = mn_host_now_ns()};
    uint64_t n;

    for (uint32_t i = 0; i < MANY; i++) {
        lens[i] = len;
    }
    do {
        n = 0;
        for (uint32_t i = 0; i < 64; i++) {
            int64_t rc = mn_chan_send_many(c, BENCH_FLOW, out, lens, MANY);

            if (rc > 0) {
                n += (uint64_t)rc;
            } else if (rc != -EAGAIN) {
                bench_fail("send", (int)rc);
            } else if (mode->app_spin_ns != UINT64_MAX) {
                (void)mn_chan_wait(c, MN_NS_PER_S);
            }
        }
    } while (rate_window(&rate, n, seconds));
    end(c, child);
    report_rate("to the engine", mode, len, &rate);
}

static void one_way_in(const struct mode *mode, uint32_t len, double seconds)
{
    static uint8_t in[MANY * 2048];
    struct mn_chan_got got[MANY];
    struct mn_chan_event event;
    pid_t child;
    struct mn_chan *c = begin(mode, BENCH_SOURCE, len, &child);
    struct rate rate = {.start_ns = mn_host_now_ns(), .last_ns = mn_host_now_ns()};
    uint64_t n;

    do {
        n = 0;
        for (uint32_t i = 0; i < 64; i++) {
            int64_t rc = mn_chan_recv_many(c, in, sizeof(in), got, MANY, &event);

            if (rc > 0) {
                n += (uint64_t)rc;
            } else if (rc != -EAGAIN) {
                bench_fail("recv", (int)rc);
            } else if (mode->app_spin_ns != UINT64_MAX) {
                (void)mn_chan_wait(c, MN_NS_PER_S);
            }
        }
    } while (rate_window(&rate, n, seconds));
    end(c, child);
    report_rate("from the engine", mode, len, &rate);
}

static void serve(int sock, enum bench_job job, uint32_t len)
{
    struct bench_fds fds;
    void *region = bench_make(&fds, &geo);
    int passed[3] = {fds.app.memfd, fds.app.wake, fds.app.kick[0]};
    char control[CMSG_SPACE(sizeof(passed))] = {0};
    struct iovec byte = {.iov_base = "", .iov_len = 1};
    struct msghdr msg = {.msg_iov = &byte,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&msg);

    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(passed));
    memcpy(CMSG_DATA(head), passed, sizeof(passed));
    if (sendmsg(sock, &msg, 0) < 0) {
        bench_fail("sendmsg", errno);
    }
    close(fds.app.wake);
    bench_engine(region, &geo, &fds, job, len, UINT64_MAX);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "serve") == 0) {
        serve(atoi(argv[2]), (enum bench_job)atoi(argv[3]), (uint32_t)atoi(argv[4]));
    }
    if (argc != 4 || strcmp(argv[1], "rows") != 0) {
        fprintf(stderr, "channel rows MODE SECONDS | channel serve SOCKET JOB LENGTH\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (uint32_t i = 0; i < MN_ARRAY_LEN(modes); i++) {
        if (strcmp(argv[2], modes[i].name) == 0) {
            round_trips(&modes[i], 64, atof(argv[3]));
            round_trips(&modes[i], 1024, atof(argv[3]));
            one_way_out(&modes[i], 64, atof(argv[3]));
            one_way_out(&modes[i], 1024, atof(argv[3]));
            one_way_in(&modes[i], 64, atof(argv[3]));
            one_way_in(&modes[i], 1024, atof(argv[3]));
        }
    }
    return 0;
}
