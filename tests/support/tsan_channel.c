/* SPDX-License-Identifier: MIT */
/*
 * An engine in its thread and applications in two others, built with -fsanitize=thread by a test:
 * whatever they share without saying so is found there. The client is attached through a loan, the
 * server's channel is of this process: their rings are the same code, and the latter's memory is
 * mapped once, so that the sanitizer sees both ends of it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machnet/sim/wire.h"
#include "machnet/stack/host/host.h"

#define IP       0x0a000002u
#define PORT     80
#define MESSAGES 4000u
#define WINDOW   16u
#define SPIN_NS  (20 * MN_NS_PER_US)

static const struct mn_chan_geometry geo = {
    .n_lanes = 1, .buf_bytes = 512, .tx_bufs = 64, .rx_bufs = 64, .flows_max = 16, .ctl_slots = 16};

static void check(int64_t rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-rc));
        exit(2);
    }
}

static struct mn_ctl_evt answer(struct mn_chan *c, int64_t token, const char *what)
{
    struct mn_ctl_evt evt;
    int rc;

    check(token, what);
    while ((rc = mn_chan_result(c, token, &evt)) == 0) {
        (void)mn_chan_wait(c, MN_NS_PER_S);
    }
    check(rc, what);
    check(evt.status, what);
    return evt;
}

static int64_t receive(struct mn_chan *c, void *buf, uint64_t size)
{
    struct mn_chan_event event;
    int64_t rc;

    while ((rc = mn_chan_recv(c, buf, size, &event)) == -EAGAIN) {
        (void)mn_chan_wait(c, MN_NS_PER_S);
    }
    return rc;
}

static void *server(void *arg)
{
    struct mn_chan *c = arg;
    uint8_t buf[2048];
    int64_t got;

    while ((got = receive(c, buf, sizeof(buf))) >= 0) {
        uint64_t len = (uint64_t)got & ((1u << MN_CHAN_LEN_BITS) - 1);
        uint32_t flow = (uint32_t)(got >> MN_CHAN_LEN_BITS);

        while (mn_chan_send(c, flow, buf, len) == -EAGAIN) {
            (void)mn_chan_wait(c, MN_NS_PER_S);
        }
    }
    return NULL; /* the client's end: it resets its flow */
}

static void talk(struct mn_chan *c)
{
    struct mn_ctl_evt evt =
        answer(c, mn_chan_connect(c, IP, 0, IP, PORT, MN_PROTO_TCP, 0), "connect");
    uint8_t out[1500], in[2048];
    uint32_t sent = 0;

    for (uint32_t back = 0; back < MESSAGES; back++) {
        while (sent < MESSAGES && sent < back + WINDOW) {
            memset(out, (int)(sent & 0xff), sizeof(out));
            if (mn_chan_send(c, evt.flow, out, sent * 7 % sizeof(out)) < 0) {
                break;
            }
            sent++;
        }
        int64_t got = receive(c, in, sizeof(in));
        uint64_t len = (uint64_t)got & ((1u << MN_CHAN_LEN_BITS) - 1);

        check(got, "receive");
        if (len != back * 7 % sizeof(out) || (len > 0 && in[len - 1] != (back & 0xff))) {
            fprintf(stderr, "message %u is another one\n", back);
            exit(3);
        }
    }
    check(mn_chan_close_flow(c, evt.flow, 0), "close");
}

int main(void)
{
    struct mn_wire_config wire_config = {.mtu = 1500, .queue_frames = 64};
    struct mn_wire *wire;
    struct mn_group *group = mn_group_new(true, 0);
    struct mn_config config;
    struct mn_stack *stack;
    struct mn_chan *listening, *client;
    struct mn_chan_fds fds;
    struct mn_lent *lent;
    struct mn_usage usage;
    pthread_t thread;

    check(mn_wire_single(&wire_config, &wire), "wire");
    mn_config_defaults(&config);
    config.ip = IP;
    config.prefix = 24;
    check(mn_stack_open(&stack, &config, mn_wire_nic(wire), group), "stack");
    check(mn_stack_start(stack, MN_POLL_ADAPTIVE, SPIN_NS, -1), "start");
    check(mn_chan_open(&listening, stack, &geo, SPIN_NS), "open");
    answer(listening, mn_chan_listen(listening, IP, PORT, MN_PROTO_TCP, 0), "listen");
    pthread_create(&thread, NULL, server, listening);
    check(mn_lend(&lent, &stack, 1, &geo, &fds), "lend");
    check(mn_chan_attach(&client, &fds, SPIN_NS), "attach");
    talk(client);
    pthread_join(thread, NULL);
    check(mn_stack_usage(stack, &usage), "usage");
    check(mn_chan_close(client, 0), "close");
    mn_chan_free(client);
    check(mn_lent_close(lent, 0), "end of the loan");
    check(mn_chan_close(listening, 0), "close");
    mn_chan_free(listening);
    check(mn_stack_close(stack), "close");
    mn_stack_free(stack);
    mn_group_free(group);
    mn_wire_close(wire);
    puts("done");
    return 0;
}
