/* SPDX-License-Identifier: MIT */
/* lwip_pair: two lwIP instances back to back in one thread, measured. One JSON object per run. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lwip_host.h"

#define PASSES_PER_CLOCK 64u
#define ROUNDS_PER_MS    64u
#define CONNECT_SECONDS  5.0

struct row {
    const char *name;
    enum mn_lwip_work work;
    uint32_t msg_bytes;
    uint32_t window_msgs;
};

/* Requests are 4 bytes longer than their payload, so that the same bytes cross the wire as when
 * each has a length in front. */
static const struct row rows[] = {
    {"64x1", MN_LWIP_REQUEST, 68, 1},   {"64x8", MN_LWIP_REQUEST, 68, 8},
    {"64x32", MN_LWIP_REQUEST, 68, 32}, {"1024x32", MN_LWIP_REQUEST, 1028, 32},
    {"bulk", MN_LWIP_BULK, 8192, 1},
};

struct options {
    struct row row;
    double seconds;
    uint64_t messages; /* 0: run for `seconds` */
    uint64_t warmup_messages;
    uint32_t burst_frames;
    uint32_t writes_per_pass;
    bool reply_in_pass;
};

static const struct mn_lwip_ops *const client = &mn_lwip_client_ops;
static const struct mn_lwip_ops *const server = &mn_lwip_server_ops;

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static _Noreturn void fail(const char *why)
{
    fprintf(stderr, "lwip_pair: %s\n", why);
    exit(1);
}

static uint64_t msgs_done(const struct options *options)
{
    const struct mn_lwip_ops *reader = options->row.work == MN_LWIP_BULK ? server : client;

    return reader->counts().msgs;
}

/* lwIP's clock. A run of so many messages gets one that counts passes, so that two such runs
 * execute the same instructions; a timed run gets the real one. */
static uint32_t lwip_clock_ms(const struct options *options, uint64_t now_ns)
{
    static uint32_t rounds;

    return options->messages ? rounds++ / ROUNDS_PER_MS : (uint32_t)(now_ns / 1000000u);
}

/* Run until `target_msgs` are done or the clock reaches `end_ns`; returns the time. The clock is
 * read once in many passes: its price is not lwIP's. */
static uint64_t run_until(const struct options *options, uint64_t target_msgs, uint64_t end_ns)
{
    uint64_t now_ns = clock_ns();

    while (now_ns < end_ns && msgs_done(options) < target_msgs) {
        const uint32_t now_ms = lwip_clock_ms(options, now_ns);

        for (uint32_t i = 0; i < PASSES_PER_CLOCK; i++) {
            client->pass(now_ms);
            server->pass(now_ms);
        }
        now_ns = clock_ns();
    }
    return now_ns;
}

static void open_pair(const struct options *options)
{
    struct mn_lwip_wire *to_server = client->wire_open();
    struct mn_lwip_wire *to_client = client->wire_open();
    struct mn_lwip_config config = {
        .work = options->row.work,
        .client = false,
        .reply_in_callback = !options->reply_in_pass,
        .msg_bytes = options->row.msg_bytes,
        .window_msgs = options->row.window_msgs,
        .burst_frames = options->burst_frames,
        .writes_per_pass = options->writes_per_pass,
    };
    const uint64_t end_ns = clock_ns() + (uint64_t)(CONNECT_SECONDS * 1e9);

    server->open(&config, to_client, to_server);
    config.client = true;
    client->open(&config, to_server, to_client);
    while (!client->connected() || !server->connected()) {
        const uint64_t now_ns = clock_ns();

        if (now_ns > end_ns)
            fail("no connection");
        client->pass(lwip_clock_ms(options, now_ns));
        server->pass(lwip_clock_ms(options, now_ns));
    }
}

static void measure(const struct options *options)
{
    const uint64_t no_end = UINT64_MAX;
    uint64_t start_ns, start_msgs, start_frames, msgs, frames, end_ns;
    struct mn_lwip_counts sent, echoed;
    double ns;

    start_ns = run_until(options, options->warmup_messages, no_end);
    start_msgs = msgs_done(options);
    start_frames = client->counts().frames_sent + server->counts().frames_sent;
    if (options->messages)
        end_ns = run_until(options, start_msgs + options->messages, no_end);
    else
        end_ns = run_until(options, no_end, start_ns + (uint64_t)(options->seconds * 1e9));
    sent = client->counts();
    echoed = server->counts();
    msgs = msgs_done(options) - start_msgs;
    frames = sent.frames_sent + echoed.frames_sent - start_frames;
    if (sent.errors || echoed.errors || sent.frames_lost || echoed.frames_lost)
        fail("wrong payload, lost frames or a lost connection");
    if (msgs == 0)
        fail("no message came through");
    ns = (double)(end_ns - start_ns);
    printf("{\"peer\": \"lwip\", \"version\": \"%s\", \"row\": \"%s\", \"work\": \"%s\", "
           "\"msg_bytes\": %" PRIu32 ", \"window_msgs\": %" PRIu32 ", \"burst_frames\": %" PRIu32
           ", \"mtu_bytes\": 1500, \"seconds\": %.6f, \"msgs\": %" PRIu64
           ", \"msgs_total\": %" PRIu64 ", \"frames\": %" PRIu64
           ", \"ns_per_msg\": %.3f, \"msgs_per_s\": %.1f, \"gbit_per_s\": %.4f}\n",
           client->version, options->row.name,
           options->row.work == MN_LWIP_BULK ? "bulk" : "request", options->row.msg_bytes,
           options->row.window_msgs, options->burst_frames, ns / 1e9, msgs, msgs_done(options),
           frames, ns / (double)msgs, (double)msgs * 1e9 / ns,
           (double)msgs * 8.0 * options->row.msg_bytes / ns);
}

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
    char *end;
    const unsigned long long value = strtoull(text, &end, 10);

    if (*end || end == text || value < least || value > most)
        fail("a number is out of range");
    return value;
}

static void take_row(struct options *options, const char *name)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (strcmp(rows[i].name, name) == 0) {
            options->row = rows[i];
            return;
        }
    }
    fail("no such row: 64x1, 64x8, 64x32, 1024x32 or bulk");
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"row", required_argument, NULL, 'r'},       {"seconds", required_argument, NULL, 's'},
        {"messages", required_argument, NULL, 'n'},  {"warmup", required_argument, NULL, 'u'},
        {"msg-bytes", required_argument, NULL, 'b'}, {"window", required_argument, NULL, 'w'},
        {"burst", required_argument, NULL, 'f'},     {"writes", required_argument, NULL, 'k'},
        {"reply-in-pass", no_argument, NULL, 'p'},   {NULL, 0, NULL, 0},
    };
    struct options options = {
        .row = rows[0],
        .seconds = 1.0,
        .warmup_messages = 20000,
        .burst_frames = 32,
        .writes_per_pass = 1,
    };
    int option;

    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == 'r')
            take_row(&options, optarg);
        else if (option == 's')
            options.seconds = strtod(optarg, NULL);
        else if (option == 'n')
            options.messages = number(optarg, 1, UINT64_MAX / 2);
        else if (option == 'u')
            options.warmup_messages = number(optarg, 0, UINT64_MAX / 2);
        else if (option == 'b')
            options.row.msg_bytes = (uint32_t)number(optarg, 8, 65535);
        else if (option == 'w')
            options.row.window_msgs = (uint32_t)number(optarg, 1, 4096);
        else if (option == 'f')
            options.burst_frames = (uint32_t)number(optarg, 1, 1024);
        else if (option == 'k')
            options.writes_per_pass = (uint32_t)number(optarg, 1, 1024);
        else if (option == 'p')
            options.reply_in_pass = true;
        else
            return 2;
    }
    open_pair(&options);
    measure(&options);
    return 0;
}
