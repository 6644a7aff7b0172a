/* SPDX-License-Identifier: MIT */
/* Messages through the channels of both stacks: what an application pays. */
#include "pair.h"

#include <errno.h>

static struct {
    struct mn_app *app[2];
    uint32_t flow;
    uint64_t sent, got;
    uint8_t buf[65536];
} f;

static struct mn_app *attach(struct mn_engine *e)
{
    struct mn_chan_geometry geo = {.n_lanes = 1,
                                   .buf_bytes = 2048,
                                   .tx_bufs = 1024,
                                   .rx_bufs = 1024,
                                   .flows_max = 16,
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
    f.app[0] = attach(p->engine[0]);
    f.app[1] = attach(p->engine[1]);
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

const struct mode pair_framed = {.name = "framed", .open = framed_open, .step = framed_step};
