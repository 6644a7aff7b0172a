/* SPDX-License-Identifier: MIT */
#include "capture.h"

#include "nickit.h"

#include "machnet/stack/core/wire/csum.h"
#include "machnet/stack/core/wire/udp.h"

#include <stdlib.h>

/* Frames that are recorded before they are handed to the inner NIC in one call. */
#define CAPTURE_BURST 32u

struct mn_capture {
    struct mn_nic nic; /* the first member: the operations find the capture by it */
    struct mn_nic *inner;
    struct mn_pcapng *writer;
    uint32_t iface;
    uint32_t snaplen;
    uint64_t now_ns;
    uint64_t epoch_ns;
};

/* Sum of the frame's bytes from l4_off to its end, whatever pieces it is made of. */
static uint32_t l4_sum(const struct mn_pkt *pkt, uint32_t l4_off)
{
    uint32_t sum = 0, skip = l4_off;
    bool odd = false;

    for (; pkt != NULL; pkt = pkt->next) {
        uint32_t part, len;

        if (skip >= pkt->len) {
            skip -= pkt->len;
            continue;
        }
        len = pkt->len - skip;
        part = mn_csum_partial(pkt->data + skip, len, 0);
        sum = mn_csum_add(sum, odd ? mn_csum_shift(part) : part);
        odd ^= (len & 1u) != 0;
        skip = 0;
    }
    return sum;
}

/* Completes the checksum in the copy: the field holds the pseudo header's sum, so the sum over
 * everything is what a finished one is made from. */
static void complete_csum(uint8_t *copy, uint32_t cap_len, const struct mn_pkt *pkt, uint32_t len)
{
    uint32_t at = (uint32_t)pkt->l4_off + pkt->csum_off;
    uint16_t csum;

    if (at + 2 > len || at + 2 > cap_len) {
        return;
    }
    csum = mn_csum_fold(l4_sum(pkt, pkt->l4_off));
    /* For UDP a checksum of zero would say that there is none. */
    if (csum == 0 && pkt->csum_off == MN_UDP_CSUM_OFF) {
        csum = UINT16_MAX;
    }
    mn_wr16be(copy + at, csum);
}

static uint32_t kept_len(const struct mn_capture *c, uint32_t len)
{
    return mn_min_u32(len, c->snaplen);
}

static void record(struct mn_capture *c, const struct mn_pkt *pkt, enum mn_pcapng_dir dir)
{
    uint32_t len = mn_pkt_frame_len(pkt);
    struct mn_pcapng_pkt entry = {
        .iface = c->iface,
        .dir = dir,
        .t_ns = c->epoch_ns + c->now_ns,
        .cap_len = kept_len(c, len),
        .orig_len = len,
    };
    uint8_t *copy = mn_pcapng_packet(c->writer, &entry);

    if (copy == NULL) {
        return;
    }
    (void)mn_pkt_copy_out(pkt, copy, entry.cap_len);
    if (pkt->csum == MN_CSUM_PARTIAL) {
        complete_csum(copy, entry.cap_len, pkt, len);
    }
}

/* What a host looks at, as the inner NIC has it now. */
static void mirror(struct mn_capture *c)
{
    c->nic.link_up = c->inner->link_up;
    c->nic.wake_ns = c->inner->wake_ns;
    c->nic.rx_fd = c->inner->rx_fd;
    c->nic.moved = c->inner->moved;
}

static uint32_t capture_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                 uint32_t n)
{
    struct mn_capture *c = (struct mn_capture *)nic;
    uint32_t i, got = c->inner->ops->rx_burst(c->inner, queue, pkts, n);

    mirror(c);
    for (i = 0; i < got; i++) {
        record(c, pkts[i], MN_PCAPNG_DIR_IN);
    }
    return got;
}

/* Records as many of the frames as fit without a flush, at least one (for which it may flush, or
 * fail): an accepted packet is not ours to read, so they are recorded before, and taken back after.
 * Fills in where each began. */
static uint32_t record_ahead(struct mn_capture *c, struct mn_pkt **pkts, uint32_t n,
                             struct mn_pcapng_mark *marks)
{
    uint32_t i;

    for (i = 0; i < n && i < CAPTURE_BURST; i++) {
        uint32_t need = mn_pcapng_block_bytes(kept_len(c, mn_pkt_frame_len(pkts[i])), 0);

        bool room = mn_pcapng_space(c->writer) >= need;

        if (!room && i > 0) {
            break;
        }
        if (!room) {
            room = mn_pcapng_make_room(c->writer, need);
        }
        marks[i] = mn_pcapng_mark(c->writer);
        if (room) {
            record(c, pkts[i], MN_PCAPNG_DIR_OUT);
        } else {
            mn_pcapng_count_drop(c->writer);
        }
    }
    return i;
}

static uint32_t capture_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts,
                                 uint32_t n)
{
    struct mn_capture *c = (struct mn_capture *)nic;
    struct mn_pcapng_mark marks[CAPTURE_BURST];
    uint32_t done = 0;

    while (done < n) {
        uint32_t ahead = record_ahead(c, pkts + done, n - done, marks);
        uint32_t taken = c->inner->ops->tx_burst(c->inner, queue, pkts + done, ahead);

        done += taken;
        if (taken < ahead) {
            mn_pcapng_rollback(c->writer, marks[taken]);
            break;
        }
    }
    mirror(c);
    return done;
}

static struct mn_pkt *capture_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_capture *c = (struct mn_capture *)nic;

    return c->inner->ops->pkt_alloc(c->inner, queue, size);
}

static void capture_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct mn_capture *c = (struct mn_capture *)nic;

    c->inner->ops->pkt_free(c->inner, queue, pkt);
}

static int capture_queue_fd(struct mn_nic *nic, uint32_t queue)
{
    struct mn_nic *inner = ((struct mn_capture *)nic)->inner;

    return inner->ops->queue_fd != NULL ? inner->ops->queue_fd(inner, queue) : inner->rx_fd;
}

static bool capture_rx_arm(struct mn_nic *nic, uint32_t queue, bool on)
{
    struct mn_nic *inner = ((struct mn_capture *)nic)->inner;

    return inner->ops->rx_arm == NULL || inner->ops->rx_arm(inner, queue, on);
}

static const struct mn_nic_ops capture_ops = {
    .rx_burst = capture_rx_burst,
    .tx_burst = capture_tx_burst,
    .pkt_alloc = capture_pkt_alloc,
    .pkt_free = capture_pkt_free,
    .queue_fd = capture_queue_fd,
    .rx_arm = capture_rx_arm,
};

int mn_capture_open(struct mn_nic *inner, const struct mn_capture_config *cfg, struct mn_nic **out)
{
    struct mn_pcapng_iface iface = {.name = cfg->if_name, .snaplen = cfg->snaplen};
    struct mn_capture *c;
    int id;

    if (cfg->writer == NULL) {
        return -EINVAL;
    }
    /* One writer at two layers of one NIC: taking back the outer record would tear the inner one.
     */
    if (inner->ops == &capture_ops && ((struct mn_capture *)inner)->writer == cfg->writer) {
        return -EINVAL;
    }
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return -ENOMEM;
    }
    memcpy(iface.mac, inner->mac, sizeof(iface.mac));
    id = mn_pcapng_add_iface(cfg->writer, &iface);
    if (id < 0) {
        free(c);
        return id;
    }
    c->nic = *inner;
    c->nic.ops = &capture_ops;
    c->inner = inner;
    c->writer = cfg->writer;
    c->iface = (uint32_t)id;
    c->snaplen = mn_pcapng_snaplen(cfg->writer, c->iface);
    c->epoch_ns = cfg->epoch_ns;
    *out = &c->nic;
    return 0;
}

void mn_capture_close(struct mn_nic *nic)
{
    if (nic != NULL) {
        MN_ASSERT(nic->ops == &capture_ops);
        free((struct mn_capture *)nic);
    }
}

void mn_capture_set_now(struct mn_nic *nic, uint64_t now_ns)
{
    MN_ASSERT(nic->ops == &capture_ops);
    ((struct mn_capture *)nic)->now_ns = now_ns;
}

int mn_capture_flush(struct mn_nic *nic)
{
    MN_ASSERT(nic->ops == &capture_ops);
    return mn_pcapng_flush(((struct mn_capture *)nic)->writer);
}
