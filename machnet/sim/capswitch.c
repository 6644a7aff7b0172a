/* SPDX-License-Identifier: MIT */
#include "capswitch.h"

#include <stdlib.h>

struct mn_capswitch {
    struct mn_nic nic; /* the first member: the operations find the switch by it */
    struct mn_nic *inner;
    struct mn_nic *capture; /* around inner; NULL: none is on */
    struct mn_pcapng *writer;
    uint64_t now_ns;
};

static struct mn_nic *way(const struct mn_capswitch *s)
{
    return MN_UNLIKELY(s->capture != NULL) ? s->capture : s->inner;
}

/* What a host looks at, as the inner NIC has it now. */
static void mirror(struct mn_capswitch *s)
{
    s->nic.link_up = s->inner->link_up;
    s->nic.wake_ns = s->inner->wake_ns;
    s->nic.rx_fd = s->inner->rx_fd;
    s->nic.moved = s->inner->moved;
}

static uint32_t switch_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                uint32_t n)
{
    struct mn_capswitch *s = (struct mn_capswitch *)nic;
    struct mn_nic *to = way(s);
    uint32_t got = to->ops->rx_burst(to, queue, pkts, n);

    mirror(s);
    return got;
}

static uint32_t switch_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                uint32_t n)
{
    struct mn_capswitch *s = (struct mn_capswitch *)nic;
    struct mn_nic *to = way(s);
    uint32_t taken = to->ops->tx_burst(to, queue, pkts, n);

    mirror(s);
    return taken;
}

static struct mn_pkt *switch_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_capswitch *s = (struct mn_capswitch *)nic;

    return s->inner->ops->pkt_alloc(s->inner, queue, size);
}

static void switch_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct mn_capswitch *s = (struct mn_capswitch *)nic;

    s->inner->ops->pkt_free(s->inner, queue, pkt);
}

static bool switch_rx_arm(struct mn_nic *nic, uint32_t queue, bool on)
{
    struct mn_nic *inner = ((struct mn_capswitch *)nic)->inner;

    return inner->ops->rx_arm == NULL || inner->ops->rx_arm(inner, queue, on);
}

static const struct mn_nic_ops switch_ops = {
    .rx_burst = switch_rx_burst,
    .tx_burst = switch_tx_burst,
    .pkt_alloc = switch_pkt_alloc,
    .pkt_free = switch_pkt_free,
    .rx_arm = switch_rx_arm,
};

static struct mn_capswitch *of_nic(struct mn_nic *nic)
{
    MN_ASSERT(nic->ops == &switch_ops);
    return (struct mn_capswitch *)nic;
}

int mn_capswitch_open(struct mn_nic *inner, struct mn_nic **out)
{
    struct mn_capswitch *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        return -ENOMEM;
    }
    s->nic = *inner;
    s->nic.ops = &switch_ops;
    s->inner = inner;
    *out = &s->nic;
    return 0;
}

void mn_capswitch_close(struct mn_nic *nic)
{
    if (nic != NULL) {
        MN_ASSERT(of_nic(nic)->capture == NULL);
        free(of_nic(nic));
    }
}

void mn_capswitch_set_now(struct mn_nic *nic, uint64_t now_ns)
{
    struct mn_capswitch *s = of_nic(nic);

    s->now_ns = now_ns;
    if (s->capture != NULL) {
        mn_capture_set_now(s->capture, now_ns);
    }
}

int64_t mn_capswitch_on(void *arg)
{
    struct mn_capswitch_order *order = arg;
    struct mn_capswitch *s = of_nic(order->nic);
    int rc;

    if (s->capture != NULL) {
        return -EBUSY;
    }
    rc = mn_capture_open(s->inner, order->cfg, &s->capture);
    if (rc == 0) {
        s->writer = order->cfg->writer;
        mn_capture_set_now(s->capture, s->now_ns);
    }
    return rc;
}

int64_t mn_capswitch_flush(void *arg)
{
    struct mn_capswitch_order *order = arg;
    struct mn_capswitch *s = of_nic(order->nic);
    int rc;

    if (s->capture == NULL) {
        return -ENOENT;
    }
    rc = mn_pcapng_flush(s->writer);
    mn_pcapng_get_stats(s->writer, &order->stats);
    return rc;
}

int64_t mn_capswitch_off(void *arg)
{
    struct mn_capswitch_order *order = arg;
    struct mn_capswitch *s = of_nic(order->nic);

    if (s->capture == NULL) {
        return -ENOENT;
    }
    (void)mn_pcapng_flush(s->writer);
    mn_pcapng_get_stats(s->writer, &order->stats);
    mn_capture_close(s->capture);
    s->capture = NULL;
    s->writer = NULL;
    return 0;
}
