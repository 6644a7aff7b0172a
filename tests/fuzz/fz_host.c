/* SPDX-License-Identifier: MIT */
#include "fz_host.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define HOSTS_MAX 2u

static const struct fz_host *hosts[HOSTS_MAX];

static void print_tcb(const struct fz_host *h, const struct mn_tcb *t)
{
    fprintf(stderr,
            "  %u-%u state %u flags %x recovery %u: una +%u nxt +%u end +%u wnd %u cwnd %u mss %u, "
            "rcv +%u (%u held) adv +%u ooo %u, rtx %" PRId64 " wait %" PRId64
            " user %d lane %u slot %u\n",
            t->lport, t->rport, t->state, t->flags, t->recovery, t->snd_una - t->iss,
            t->snd_nxt - t->iss, t->snd_end - t->iss, t->snd_wnd, t->cc.cwnd, t->mss,
            t->rcv_nxt - t->irs, mn_tcp_held(t), t->rcv_adv - t->irs, t->ooo_bytes,
            t->rtx_at == 0 ? -1 : (int64_t)(t->rtx_at - h->now_ns),
            t->wait_at == 0 ? -1 : (int64_t)(t->wait_at - h->now_ns), t->user != NULL, t->lane,
            t->slot);
}

static void print_lane(const struct mn_lane *l)
{
    fprintf(stderr, "  lane %u: dead %u detached %d slots used %u, rx free %u of %u claimed %u\n",
            l->number, l->dead, l->detached, l->slots_used,
            l->rx_n_free + l->geo.rx_bufs - l->rx_high, l->geo.rx_bufs, l->rx_claimed);
    for (uint32_t i = 0; i < l->slot_high; i++) {
        const struct mn_slot *s = &l->slots[i];

        fprintf(stderr,
                "    slot %u: state %u flags %x tcb %d held %u unread %u msg %u of %u reserved %u "
                "tx_bufs %u\n",
                i, s->state, s->flags, (int)s->tcb, s->held_bufs, s->unread_bytes, s->msg_have,
                s->msg_len, s->reserved_bufs, s->tx_bufs);
    }
}

static void print_hosts(void)
{
    for (uint32_t k = 0; k < HOSTS_MAX; k++) {
        const struct fz_host *h = hosts[k];

        if (h == NULL) {
            continue;
        }
        fprintf(stderr, "engine of %08x at %" PRIu64 " ns, deadline %" PRIu64 ":\n", h->cfg.ip,
                h->now_ns, mn_engine_deadline(h->e));
        for (uint32_t i = 0; i < h->e->tcb_pool.high; i++) {
            if (mn_tcb_at(h->e, i)->state != MN_TCP_CLOSED || mn_tcb_at(h->e, i)->user != NULL) {
                print_tcb(h, mn_tcb_at(h->e, i));
            }
        }
        for (uint32_t i = 0; i < h->e->n_lanes; i++) {
            if (h->e->lanes[i] != NULL) {
                print_lane(h->e->lanes[i]);
            }
        }
    }
}

/* The first `zeroed` bytes are zero; nothing may rely on the rest. */
static void *aligned(uint64_t bytes, uint64_t zeroed)
{
    void *p = NULL;

    FZ_CHECK(posix_memalign(&p, MN_CACHE_LINE, bytes) == 0);
    memset(p, 0, zeroed);
    return p;
}

void fz_host_config(struct fz_in *in, struct mn_config *cfg, uint32_t ip)
{
    static const uint32_t rcv_buf[] = {65536, 2048, 524288, 5000};
    uint8_t a = fz_u8(in), b = fz_u8(in);

    mn_config_defaults(cfg);
    cfg->ip = ip;
    cfg->secret[0] = 7;
    cfg->flows_max = 8;
    cfg->listeners_max = 4;
    cfg->neighbors_max = 8;
    cfg->lanes_max = FZ_LANES;
    cfg->ooo_blocks_max = (a & 1) != 0 ? 2 : 24;
    cfg->ooo_ranges_max = (a & 2) != 0 ? 4 : 12;
    cfg->sack_ranges_max = (a & 4) != 0 ? 4 : 12;
    cfg->loop_slots = (a & 8) != 0 ? 4 : 64;
    cfg->poll_burst = (a & 16) != 0 ? 2 : 32;
    cfg->poll_descs = (a & 32) != 0 ? 3 : 64;
    cfg->rcv_buf_bytes = rcv_buf[a >> 6];
    cfg->timestamps = (b & 1) == 0;
    cfg->sack = (b & 2) == 0;
    cfg->wscale = (b & 4) == 0;
    cfg->nagle_framed = (b & 8) != 0;
    cfg->nagle_stream = (b & 16) == 0;
    cfg->delack_us = (b & 32) != 0 ? 0 : 40000;
    cfg->arp_queue_pkts = 2;
    cfg->syn_backlog_max = 4;
    cfg->rst_per_s = (b & 64) != 0 ? 2 : 1000;
    cfg->msl_ms = 2000;
    cfg->gateway = (b & 128) != 0 ? FZ_IP(254) : 0;
    /* Short enough to be reached, still in the order of the defaults. */
    cfg->user_timeout_ms = 20000;
    cfg->fin_wait2_ms = 10000;
    cfg->mnp_flows_max = 6;
    cfg->mnp_user_timeout_ms = 20000;
}

static void on_wake(void *ctx, uint32_t lane)
{
    struct fz_host *h = ctx;

    (void)lane;
    h->wakes++;
}

void fz_host_config_mnp(struct fz_in *in, struct mn_config *cfg)
{
    static const uint32_t windows[] = {256, 2, 64, 5};
    uint8_t b = fz_u8(in);

    cfg->mnp_window_packets = windows[b & 3];
    cfg->mnp_extended = (b & 4) == 0;
    cfg->mnp_flows_max = (b & 8) != 0 ? 2 : 6;
    cfg->mnp_msl_ms = (b & 16) != 0 ? 30000 : 1000;
    cfg->mnp_rto_min_us = (b & 32) != 0 ? 200000 : 1000;
}

void fz_host_open(struct fz_host *h, const struct mn_config *cfg, uint32_t mtu, uint8_t caps)
{
    struct mn_host host = {.ctx = h, .wake = on_wake};
    uint64_t bytes = mn_engine_bytes(cfg);

    *h = (struct fz_host){.cfg = *cfg, .now_ns = FZ_START_NS};
    fz_nic_open(&h->nic, mtu, caps, (uint8_t)cfg->ip);
    FZ_CHECK(bytes > 0);
    FZ_CHECK(mn_engine_open(&h->e, aligned(bytes, bytes), bytes, cfg, &h->nic.nic, &host,
                            h->now_ns) == 0);
    hosts[(cfg->ip + 1) % HOSTS_MAX] = h;
    fz_on_panic = print_hosts;
}

void fz_chan_geometry(struct fz_in *in, struct mn_chan_geometry *geo)
{
    uint8_t a = fz_u8(in);

    *geo = (struct mn_chan_geometry){
        .n_lanes = 1,
        .buf_bytes = (a & 1) != 0 ? 1024 : 512,
        .tx_bufs = (a & 2) != 0 ? 96 : 16,
        .rx_bufs = (a & 4) != 0 ? 96 : 16,
        .flows_max = (a & 8) != 0 ? 2 : 6,
        .ctl_slots = (a & 16) != 0 ? 64 : 16,
    };
}

/* The engine's and the application's side of a lane of memory that is there. */
static void chan_attach(struct fz_host *h, struct fz_chan *c, uint32_t index)
{
    uint64_t priv_bytes = mn_lane_priv_bytes(&c->geo), mem_bytes = mn_app_bytes(&c->geo);
    int lane;

    c->priv = aligned(priv_bytes, priv_bytes);
    c->mem = aligned(mem_bytes, 0);
    FZ_CHECK(mn_app_open_lane(&c->app, c->mem, mem_bytes, c->region, c->region_bytes, index, NULL,
                              NULL) == 0);
    lane = mn_engine_attach_lane(h->e, c->region, c->region_bytes, index, c->priv, priv_bytes);
    FZ_CHECK(lane >= 0);
    c->lane = (uint32_t)lane;
}

void fz_chan_open(struct fz_host *h, uint32_t i, const struct mn_chan_geometry *geo)
{
    struct fz_chan *c = &h->chans[i];
    struct mn_lane_layout layout;

    c->geo = *geo;
    c->region_bytes = mn_chan_bytes(geo);
    FZ_CHECK(mn_chan_layout(geo, &layout) == 0);
    c->region = aligned(c->region_bytes, sizeof(struct mn_chan_hdr) + layout.tx_pool_off);
    FZ_CHECK(mn_chan_format(c->region, c->region_bytes, geo) == 0);
    chan_attach(h, c, 0);
}

void fz_chan_open_lane(struct fz_host *h, uint32_t i, const struct fz_chan *of, uint32_t index)
{
    struct fz_chan *c = &h->chans[i];

    *c = (struct fz_chan){
        .geo = of->geo, .region = of->region, .region_bytes = of->region_bytes, .borrowed = true};
    chan_attach(h, c, index);
}

void fz_chan_detach(struct fz_host *h, uint32_t i, uint32_t linger_ms)
{
    struct fz_chan *c = &h->chans[i];

    if (c->app != NULL) {
        mn_app_flush(c->app);
        c->app = NULL;
        FZ_CHECK(mn_engine_detach(h->e, c->lane, linger_ms) == 0);
    }
}

bool fz_chan_reap(struct fz_host *h, uint32_t i)
{
    struct fz_chan *c = &h->chans[i];

    if (c->region == NULL) {
        return true;
    }
    if (c->app != NULL || mn_engine_lane_free(h->e, c->lane) != 1) {
        return false;
    }
    if (!c->borrowed) {
        free(c->region);
    }
    free(c->priv);
    free(c->mem);
    *c = (struct fz_chan){0};
    return true;
}

void fz_host_poll(struct fz_host *h)
{
    mn_engine_poll(h->e, h->now_ns);
    fz_check_engine(h->e);
}

bool fz_host_run(struct fz_host *h, uint64_t until, uint32_t passes)
{
    for (; passes > 0; passes--) {
        uint64_t at = mn_engine_deadline(h->e);

        FZ_CHECK(at >= h->e->now_ns);
        if (at > until) {
            h->now_ns = mn_max_u64(h->now_ns, until);
            return true;
        }
        h->now_ns = mn_max_u64(h->now_ns, at);
        fz_host_poll(h);
    }
    return false;
}

void fz_host_close(struct fz_host *h)
{
    struct mn_usage use;

    mn_engine_usage(h->e, &use);
    FZ_CHECK(use.tcbs == 0 && use.half_open == 0 && use.time_wait == 0);
    FZ_CHECK(use.ooo_blocks == 0 && use.ooo_ranges == 0 && use.sack_ranges == 0);
    FZ_CHECK(use.listeners == 0 && use.mnp_flows == 0);
    for (uint32_t i = 0; i < FZ_LANES; i++) {
        FZ_CHECK(fz_chan_reap(h, i));
    }
    mn_engine_close(h->e);
    fz_nic_close(&h->nic);
    hosts[(h->cfg.ip + 1) % HOSTS_MAX] = NULL;
    free(h->e);
}
