/* SPDX-License-Identifier: MIT */
/* The engine's end of a channel without an engine: it copies, and that is all. */
#include "channel.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64u

struct end {
    struct mn_lane_shared *sh;
    struct mn_ring_cons submit, released, ctl_submit;
    struct mn_ring_prod completed, deliver, ctl_complete;
    uint8_t *tx_pool, *rx_pool;
    uint32_t buf_bytes, rx_bufs;
    uint32_t *rx_free;
    uint32_t n_free;
    uint8_t copy[65536];
};

_Noreturn void bench_fail(const char *why, int err)
{
    fprintf(stderr, "channel: %s: %s\n", why, strerror(err < 0 ? -err : err));
    exit(1);
}

void *bench_make(struct bench_fds *fds, const struct mn_chan_geometry *geo)
{
    struct epoll_event edge = {.events = EPOLLIN | EPOLLET};
    uint64_t bytes = mn_chan_bytes(geo);
    int ends[2];
    void *region;

    *fds = (struct bench_fds){.epoll = epoll_create1(0), .app.n_lanes = 1};
    fds->app.memfd = memfd_create("bench", MFD_ALLOW_SEALING);
    fds->app.kick[0] = eventfd(0, EFD_NONBLOCK);
    if (ftruncate(fds->app.memfd, (off_t)bytes) < 0 ||
        fcntl(fds->app.memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0 ||
        epoll_ctl(fds->epoll, EPOLL_CTL_ADD, fds->app.kick[0], &edge) < 0) {
        bench_fail("descriptors", errno);
    }
    fds->wake = ends[0];
    fds->app.wake = ends[1];
    region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds->app.memfd, 0);
    if (region == MAP_FAILED) {
        bench_fail("mmap", errno);
    }
    if (mn_chan_format(region, bytes, geo) < 0) {
        bench_fail("format", EINVAL);
    }
    return region;
}

static void end_open(struct end *e, void *region, const struct mn_chan_geometry *geo)
{
    struct mn_lane_layout y;
    uint8_t *lane;

    mn_chan_layout(geo, &y);
    lane = mn_chan_lane(region, &y, 0);
    e->sh = (struct mn_lane_shared *)(void *)lane;
    mn_ring_cons_init(&e->submit, &e->sh->submit, lane + y.submit_off, y.msg_slots_tx);
    mn_ring_prod_init(&e->completed, &e->sh->completed, lane + y.completed_off, y.ret_slots_tx);
    mn_ring_prod_init(&e->deliver, &e->sh->deliver, lane + y.deliver_off, y.msg_slots_rx);
    mn_ring_cons_init(&e->released, &e->sh->released, lane + y.released_off, y.ret_slots_rx);
    mn_ring_cons_init(&e->ctl_submit, &e->sh->ctl_submit, lane + y.ctl_submit_off, geo->ctl_slots);
    mn_ring_prod_init(&e->ctl_complete, &e->sh->ctl_complete, lane + y.ctl_complete_off,
                      geo->ctl_slots);
    e->tx_pool = lane + y.tx_pool_off;
    e->rx_pool = lane + y.rx_pool_off;
    e->buf_bytes = geo->buf_bytes;
    e->rx_bufs = geo->rx_bufs;
    e->rx_free = malloc(geo->rx_bufs * sizeof(uint32_t));
    while (e->n_free < geo->rx_bufs) {
        e->rx_free[e->n_free] = geo->rx_bufs - 1 - e->n_free;
        e->n_free++;
    }
    /* The one flow that there is: somebody has connected. */
    ((struct mn_ctl_evt *)e->ctl_complete.slots)[e->ctl_complete.pos++] =
        (struct mn_ctl_evt){.kind = MN_EVT_ACCEPT, .flow = BENCH_FLOW, .proto = MN_PROTO_TCP};
    mn_ring_publish(&e->ctl_complete);
}

static void give(struct end *e, const uint8_t *bytes, uint32_t len)
{
    uint32_t b = e->rx_free[--e->n_free];

    memcpy(e->rx_pool + (uint64_t)b * e->buf_bytes, bytes, len);
    *mn_desc_slot(&e->deliver) = (struct mn_desc){
        .buf = b, .len = len, .flow = BENCH_FLOW, .flags = MN_DESC_FIRST | MN_DESC_LAST};
    e->deliver.pos++;
}

/* One pass; whether there was anything to do. */
static bool end_pass(struct end *e, enum bench_job job, uint32_t len)
{
    int64_t n = mn_ring_avail(&e->released);
    uint32_t done = n > 0;

    for (; n > 0; n--) {
        e->rx_free[e->n_free++] = mn_buf_next(&e->released);
    }
    mn_ring_consume(&e->released);
    n = mn_ring_avail(&e->submit);
    for (uint32_t i = 0; i < BATCH && n > 0 && (job != BENCH_ECHO || e->n_free > 0); i++, n--) {
        struct mn_desc d = mn_desc_next(&e->submit);
        const uint8_t *bytes = e->tx_pool + (uint64_t)d.buf * e->buf_bytes;

        if (job == BENCH_ECHO) {
            give(e, bytes, d.len);
        } else {
            memcpy(e->copy, bytes, d.len);
            __asm__ volatile("" ::"r"(e->copy) : "memory");
        }
        ((uint32_t *)e->completed.slots)[e->completed.pos++ & e->completed.mask] = d.buf;
        done++;
    }
    mn_ring_consume(&e->submit);
    for (uint32_t i = 0; job == BENCH_SOURCE && i < BATCH && e->n_free > 0; i++) {
        give(e, e->copy, len);
        done++;
    }
    return done > 0;
}

static void end_publish(struct end *e, int wake)
{
    bool news;

    /* As the engine does. */
    mn_ring_hand_over(&e->deliver, e->rx_pool, e->rx_bufs, e->buf_bytes);
    mn_buf_hand_over(&e->completed);
    news = mn_ring_publish(&e->deliver);
    news |= mn_ring_publish(&e->completed);
    if (!news) {
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&e->sh->app_sleeps, memory_order_relaxed) != 0 &&
        send(wake, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
        exit(0);
    }
}

static void end_sleep(struct end *e, int epoll)
{
    struct epoll_event event;

    atomic_store_explicit(&e->sh->engine_sleeps, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (mn_ring_avail(&e->submit) == 0 && mn_ring_avail(&e->released) == 0) {
        (void)epoll_wait(epoll, &event, 1, 1000);
    }
    atomic_store_explicit(&e->sh->engine_sleeps, 0, memory_order_relaxed);
}

_Noreturn void bench_engine(void *region, const struct mn_chan_geometry *geo,
                            const struct bench_fds *fds, enum bench_job job, uint32_t len,
                            uint64_t spin_ns)
{
    static struct end e;
    uint64_t useful_ns = mn_host_now_ns();

    end_open(&e, region, geo);
    for (;;) {
        if (end_pass(&e, job, len)) {
            end_publish(&e, fds->wake);
            useful_ns = 0;
        } else if (spin_ns != UINT64_MAX) {
            uint64_t now_ns = mn_host_now_ns();

            useful_ns = useful_ns == 0 ? now_ns : useful_ns;
            if (now_ns - useful_ns >= spin_ns) {
                end_sleep(&e, fds->epoll);
                useful_ns = 0;
            }
        }
    }
}
