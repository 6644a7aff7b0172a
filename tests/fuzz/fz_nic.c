/* SPDX-License-Identifier: MIT */
#include "fz_nic.h"

#include <stdio.h>
#include <stdlib.h>

void (*fz_on_panic)(void);

void mn_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, what);
    if (fz_on_panic != NULL) {
        fz_on_panic();
    }
    __builtin_trap();
}

static void *need(size_t bytes)
{
    void *p = malloc(bytes);

    FZ_CHECK(p != NULL);
    return p;
}

struct fz_frame *fz_frame_new(uint32_t len)
{
    struct fz_frame *f = need(sizeof(*f));

    *f = (struct fz_frame){.data = need(len), .len = len};
    return f;
}

void fz_frame_free(struct fz_frame *f)
{
    free(f->data);
    free(f);
}

void fz_queue_put(struct fz_queue *q, struct fz_frame *f)
{
    f->next = NULL;
    if (q->head == NULL) {
        q->head = f;
    } else {
        q->tail->next = f;
    }
    q->tail = f;
    q->n++;
}

struct fz_frame *fz_queue_get(struct fz_queue *q)
{
    struct fz_frame *f = q->head;

    if (f != NULL) {
        q->head = f->next;
        q->n--;
    }
    return f;
}

static struct mn_pkt *pkt_new(struct fz_nic *n, uint8_t *data, uint32_t len, uint32_t room)
{
    struct mn_pkt *p = need(sizeof(*p));

    *p = (struct mn_pkt){.data = data, .len = len, .room = room};
    n->live++;
    return p;
}

static struct mn_pkt *op_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct fz_nic *n = (struct fz_nic *)nic;

    (void)queue;
    FZ_CHECK(size > 0 && size <= nic->caps.tx_max_frame);
    if (n->alloc_fail > 0) {
        n->alloc_fail--;
        return NULL;
    }
    return pkt_new(n, need(size), 0, size);
}

static void op_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct fz_nic *n = (struct fz_nic *)nic;

    (void)queue;
    while (pkt != NULL) {
        struct mn_pkt *next = pkt->next;

        FZ_CHECK(n->live > 0);
        n->live--;
        free(pkt->data);
        free(pkt);
        pkt = next;
    }
}

static uint32_t op_rx(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t max)
{
    struct fz_nic *n = (struct fz_nic *)nic;
    uint32_t done = 0;

    (void)queue;
    while (done < max && n->rx.head != NULL) {
        struct fz_frame *f = fz_queue_get(&n->rx);
        struct mn_pkt *p;

        if (f->split > 0 && f->split < f->len) {
            uint32_t rest = f->len - f->split;

            p = pkt_new(n, need(f->split), f->split, f->split);
            memcpy(p->data, f->data, f->split);
            p->next = pkt_new(n, need(rest), rest, rest);
            memcpy(p->next->data, f->data + f->split, rest);
        } else {
            p = pkt_new(n, f->data, f->len, f->len);
            f->data = NULL;
        }
        p->csum = f->csum;
        p->gso_size = f->gso_size;
        p->l4_off = f->l4_off;
        p->csum_off = f->csum_off;
        fz_frame_free(f);
        pkts[done++] = p;
    }
    return done;
}

/* What the engine may ask of a NIC. */
static void check_tx(const struct fz_nic *n, const struct mn_pkt *p)
{
    const struct mn_nic_caps *caps = &n->nic.caps;

    FZ_CHECK(p->next == NULL && p->len >= 14 && p->len <= p->room);
    FZ_CHECK(p->len <= caps->tx_max_frame);
    FZ_CHECK(p->gso_size == 0 ? p->len <= caps->mtu + 14 : caps->tx_gso);
    FZ_CHECK(p->csum == MN_CSUM_NONE || (p->csum == MN_CSUM_PARTIAL && caps->tx_csum_tcp));
}

static uint32_t op_tx(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t max)
{
    struct fz_nic *n = (struct fz_nic *)nic;
    uint32_t done;

    (void)queue;
    if (n->tx_stuck > 0) {
        n->tx_stuck--;
        return 0;
    }
    max = mn_min_u32(max, n->tx_limit);
    for (done = 0; done < max; done++) {
        struct fz_frame *f = fz_frame_new(pkts[done]->len);

        check_tx(n, pkts[done]);
        memcpy(f->data, pkts[done]->data, f->len);
        f->csum = pkts[done]->csum;
        f->gso_size = pkts[done]->gso_size;
        f->l4_off = pkts[done]->l4_off;
        f->csum_off = pkts[done]->csum_off;
        fz_queue_put(&n->tx, f);
        op_free(nic, 0, pkts[done]);
    }
    return done;
}

static const struct mn_nic_ops ops = {
    .rx_burst = op_rx, .tx_burst = op_tx, .pkt_alloc = op_alloc, .pkt_free = op_free};

void fz_nic_open(struct fz_nic *n, uint32_t mtu, uint8_t caps, uint8_t mac_last)
{
    bool gso = (caps & 3) == 3;

    *n = (struct fz_nic){.tx_limit = UINT32_MAX};
    n->nic = (struct mn_nic){
        .ops = &ops,
        .caps = {.mtu = mtu,
                 .rx_max_frame = 65549,
                 .tx_max_frame = gso ? 65549 : mtu + 14,
                 .queues = 1,
                 .tx_csum_tcp = (caps & 1) != 0,
                 .tx_gso = gso,
                 .rx_csum_trusted = (caps & 4) != 0},
        .mac = {2, 0, 0, 0, 0, mac_last},
        .link_up = 1,
        .rx_fd = -1,
    };
}

void fz_nic_close(struct fz_nic *n)
{
    struct fz_frame *f;

    while ((f = fz_queue_get(&n->rx)) != NULL) {
        fz_frame_free(f);
    }
    while ((f = fz_queue_get(&n->tx)) != NULL) {
        fz_frame_free(f);
    }
    FZ_CHECK(n->live == 0);
}
