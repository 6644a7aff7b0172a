/* SPDX-License-Identifier: MIT */
/* Messages through the channels of both stacks: what an application pays. */
#include "pair.h"

#include <errno.h>

#define LANES_MAX 16u
/* Connections that are being opened at a time. */
#define OPENING 32u

static struct {
    struct mn_app *app[2];
    struct mn_app *idle_app[LANES_MAX][2]; /* the first is app[] */
    uint32_t flow;
    uint64_t sent, got;
    uint8_t buf[65536];
} f;

static struct mn_app *attach(struct mn_engine *e, uint32_t flows)
{
    struct mn_chan_geometry geo = {.n_lanes = 1,
                                   .buf_bytes = 2048,
                                   .tx_bufs = 1024,
                                   .rx_bufs = 1024,
                                   .flows_max = flows + 16,
                                   .ctl_slots = 64};
    uint64_t bytes = mn_chan_bytes(&geo), priv = mn_lane_priv_bytes(&geo),
             mine = mn_app_bytes(&geo);
    void *region = pair_memory(bytes);
    struct mn_app *app;
    int err = mn_chan_format(region, bytes, &geo);

    if (err == 0) {
        err = mn_engine_attach(e, region, bytes, pair_memory(priv), priv);
    }
    if (err >= 0) {
        err = mn_app_open(&app, pair_memory(mine), mine, region, bytes, NULL, NULL);
    }
    if (err < 0) {
        pair_fail("attach", err);
    }
    return app;
}

static struct mn_ctl_evt wait_result(struct pair *p, struct mn_app *app, int64_t token)
{
    struct mn_ctl_evt evt;

    for (uint32_t i = 0; i < 1000; i++) {
        pair_poll(p);
        if (mn_app_result(app, token, &evt) == 1) {
            if (evt.status != 0) {
                pair_fail("control", evt.status);
            }
            return evt;
        }
    }
    pair_fail("control", ETIMEDOUT);
}

static void framed_open(struct pair *p)
{
    uint32_t flows = mn_min_u32(p->idle, LANE_FLOWS_MAX);

    f.idle_app[0][0] = f.app[0] = attach(p->engine[0], flows);
    f.idle_app[0][1] = f.app[1] = attach(p->engine[1], flows);
    wait_result(p, f.app[1], mn_app_listen(f.app[1], SERVER_IP, PORT, MN_PROTO_TCP, 0));
    f.flow = wait_result(p, f.app[0],
                         mn_app_connect(f.app[0], CLIENT_IP, 0, SERVER_IP, PORT, MN_PROTO_TCP, 0))
                 .flow;
}

static void client_send(struct pair *p)
{
    uint64_t limit = f.got + p->work.window_msgs;

    if (p->work.bulk) {
        limit = UINT64_MAX;
    }
    while (f.sent < limit) {
        pair_fill(f.buf, p->work.payload_bytes, f.sent);
        if (mn_app_send_nopub(f.app[0], f.flow, f.buf, p->work.payload_bytes) != 0) {
            break;
        }
        f.sent++;
    }
    mn_app_flush(f.app[0]);
}

/* Takes every message that is there; the server gives each one back. */
static void drain(struct pair *p, uint32_t who)
{
    struct mn_app_msg msg;

    while (mn_app_peek(f.app[who], &msg) == 1) {
        if (msg.status != 0) {
            pair_fail("flow", msg.status);
        }
        mn_app_take(f.app[who], f.buf, sizeof(f.buf));
        if (who == 1 && !p->work.bulk) {
            if (mn_app_send_nopub(f.app[1], msg.flow, f.buf, msg.len) != 0) {
                pair_fail("reply", ENOBUFS);
            }
            continue;
        }
        if (msg.len != p->work.payload_bytes || !pair_check(f.buf, msg.len, f.got)) {
            p->errors++;
        }
        f.got++;
        p->msgs++;
    }
    mn_app_flush(f.app[who]);
}

static void framed_step(struct pair *p)
{
    drain(p, 1);
    if (!p->work.bulk) {
        drain(p, 0);
    }
    client_send(p);
}

static int64_t start_connect(struct mn_app *client, uint16_t local_port, uint16_t port)
{
    int64_t token = mn_app_connect(client, CLIENT_IP, local_port, SERVER_IP, port, MN_PROTO_TCP, 0);

    if (token < 0) {
        pair_fail("connect", (int)token);
    }
    return token;
}

/* Each lane has a port of the server's for itself, and the client's ports are named, so that the
 * search for a free one plays no part. */
static void open_on_lane(struct pair *p, uint32_t lane, uint32_t n)
{
    uint16_t port = (uint16_t)(PORT + 1 + lane);
    struct mn_app *client, *server;

    if (lane > 0) {
        f.idle_app[lane][0] = attach(p->engine[0], n);
        f.idle_app[lane][1] = attach(p->engine[1], n);
    }
    client = f.idle_app[lane][0];
    server = f.idle_app[lane][1];
    wait_result(p, server, mn_app_listen(server, SERVER_IP, port, MN_PROTO_TCP, 0));
    for (uint32_t done = 0; done < n;) {
        uint32_t some = mn_min_u32(n - done, OPENING);
        int64_t tokens[OPENING];

        for (uint32_t i = 0; i < some; i++) {
            tokens[i] = start_connect(client, (uint16_t)(5000 + done + i), port);
        }
        for (uint32_t i = 0; i < some; i++) {
            wait_result(p, client, tokens[i]);
        }
        mn_app_poll(server); /* takes in what it is told of the new flows */
        done += some;
    }
}

static void framed_open_idle(struct pair *p)
{
    uint32_t lane = 0;

    for (uint32_t left = p->idle; left > 0; lane++) {
        uint32_t n = mn_min_u32(left, LANE_FLOWS_MAX);

        open_on_lane(p, lane, n);
        left -= n;
    }
}

static uint32_t server_tcbs(struct pair *p)
{
    struct mn_usage usage;

    mn_engine_usage(p->engine[1], &usage);
    return usage.tcbs;
}

/* Connects and sends one message; who reads it closes, and the client does then. It is left in
 * TIME-WAIT on one side. */
static void framed_cycle(struct pair *p)
{
    struct mn_app *client = f.app[0], *server = f.app[1];
    uint32_t before = server_tcbs(p), messages = 0;
    uint32_t flow = wait_result(p, client, start_connect(client, 0, PORT)).flow;
    struct mn_app_msg msg;

    mn_app_send(client, flow, f.buf, sizeof(p->msgs));
    mn_app_close_flow(client, flow, MN_LINGER_DEFAULT);
    for (uint32_t i = 0; i < 100 && (messages == 0 || server_tcbs(p) > before); i++) {
        pair_poll(p);
        mn_app_poll(client);
        while (mn_app_peek(server, &msg) == 1) {
            messages++;
            p->errors += msg.status != 0;
            mn_app_skip(server);
            mn_app_close_flow(server, msg.flow, MN_LINGER_DEFAULT);
        }
    }
    if (messages != 1 || server_tcbs(p) > before) {
        pair_fail("close", ETIMEDOUT);
    }
    p->msgs++;
}

const struct mode pair_framed = {.name = "framed",
                                 .open = framed_open,
                                 .step = framed_step,
                                 .open_idle = framed_open_idle,
                                 .cycle = framed_cycle};
