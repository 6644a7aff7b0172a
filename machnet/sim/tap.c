/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include "nickit.h"
#include "pktpool.h"
#include "tap_open.h"
#include "vnet.h"

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/ipv4.h"

#include <stdlib.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#define TAP_POOL_PKTS_DEFAULT 256u
#define TAP_GSO_MAX_FRAME     (MN_ETH_HLEN + MN_IPV4_LEN_MAX)
/* More than any frame, so that a read that fills the buffer has cut something off. */
#define TAP_ROOM_BYTES (65536u + 64u)
/* Reads of one burst at most, and pieces of one frame. */
#define TAP_BURST_MAX  32u
#define TAP_PIECES_MAX 64u

static_assert(MN_PKT_HEADROOM_BYTES >= MN_VNET_HDR_BYTES, "the vnet header goes into the headroom");

/* What one thread uses. */
struct tap_queue {
    _Alignas(MN_CACHE_LINE) struct mn_pktpool pool;
    int fd;
    uint32_t burst; /* reads to make before what was read is handed over */
    struct mn_tap_stats stats;
};

struct mn_tap {
    struct mn_nic nic;  /* the first member: the operations find the TAP by it */
    uint32_t hdr_bytes; /* of the vnet header; 0: there is none */
    uint32_t mtu_frame; /* largest frame without gso_size */
    struct mn_tap_dev dev;
    struct tap_queue queues[MN_TAP_QUEUES_MAX];
};

/* All queues may say so at once. */
static inline void set_link(struct mn_tap *t, uint8_t up)
{
    if (MN_UNLIKELY(__atomic_load_n(&t->nic.link_up, __ATOMIC_RELAXED) != up)) {
        __atomic_store_n(&t->nic.link_up, up, __ATOMIC_RELAXED);
    }
}

/* Notes an error of the device; the link counts as down until a call succeeds again. */
static void note_error(struct mn_tap *t, struct tap_queue *q, uint64_t *counter)
{
    (*counter)++;
    q->stats.last_errno = errno;
    if (errno == EIO || errno == EBADFD) {
        set_link(t, 0);
    }
}

/* Reads one frame into pkt: 1, 0 (nothing there, or the device failed), or -EINVAL for a frame that
 * is not to be believed. */
static int read_frame(struct mn_tap *t, struct tap_queue *q, struct mn_pkt *pkt)
{
    uint8_t *start = pkt->data - t->hdr_bytes;
    uint32_t size = pkt->room + t->hdr_bytes;
    ssize_t n;

    do {
        q->stats.rx_calls++;
        n = read(q->fd, start, size);
    } while (MN_UNLIKELY(n < 0 && errno == EINTR));
    if (n < 0) {
        if (MN_UNLIKELY(errno != EAGAIN)) {
            note_error(t, q, &q->stats.rx_errors);
        }
        return 0;
    }
    set_link(t, 1);
    if (MN_UNLIKELY((uint32_t)n < t->hdr_bytes + MN_ETH_HLEN || (uint32_t)n >= size)) {
        q->stats.rx_bad_len++;
        return -EINVAL;
    }
    pkt->len = (uint32_t)n - t->hdr_bytes;
    if (t->hdr_bytes != 0 && MN_UNLIKELY(mn_vnet_read(start, pkt) != 0)) {
        q->stats.rx_bad_vnet++;
        return -EINVAL;
    }
    q->stats.rx_frames++;
    q->stats.rx_bytes += pkt->len;
    return 1;
}

/* How many frames to read before handing them over follows from the traffic: a frame that comes
 * alone is not held up by a read that finds nothing, and a stream is taken in growing bursts. */
static uint32_t tap_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_tap *t = (struct mn_tap *)nic;
    struct tap_queue *q = &t->queues[queue];
    uint32_t got = 0, reads = 0;

    n = mn_min_u32(n, q->burst);
    while (got < n && reads < TAP_BURST_MAX) {
        struct mn_pkt *pkt = mn_pktpool_get(&q->pool);
        int rc;

        if (MN_UNLIKELY(pkt == NULL)) {
            q->stats.rx_no_pkt++;
            return got;
        }
        rc = read_frame(t, q, pkt);
        reads++;
        if (MN_LIKELY(rc > 0)) {
            pkts[got++] = pkt;
            continue;
        }
        mn_pktpool_put(&q->pool, pkt);
        if (rc == 0) {
            q->burst = mn_max_u32(got, 1);
            return got;
        }
    }
    q->burst = mn_min_u32(q->burst * 2, TAP_BURST_MAX);
    return got;
}

/* The frame's pieces behind `hdr`, for writev. */
static ssize_t write_pieces(struct mn_tap *t, struct tap_queue *q, uint8_t *hdr,
                            const struct mn_pkt *pkt)
{
    struct iovec iov[TAP_PIECES_MAX + 1];
    int n = 0;

    if (t->hdr_bytes != 0) {
        iov[n++] = (struct iovec){.iov_base = hdr, .iov_len = t->hdr_bytes};
    }
    for (; pkt != NULL; pkt = pkt->next) {
        MN_ASSERT(n <= (int)TAP_PIECES_MAX);
        iov[n++] = (struct iovec){.iov_base = pkt->data, .iov_len = pkt->len};
    }
    return writev(q->fd, iov, n);
}

static ssize_t write_frame(struct mn_tap *t, struct tap_queue *q, struct mn_pkt *pkt)
{
    uint8_t hdr[MN_VNET_HDR_BYTES];
    uint8_t *start = pkt->data - t->hdr_bytes;

    if (MN_UNLIKELY(pkt->next != NULL || start < mn_pktpool_buf(pkt))) {
        mn_vnet_write(hdr, pkt);
        return write_pieces(t, q, hdr, pkt);
    }
    if (t->hdr_bytes != 0) {
        mn_vnet_write(start, pkt);
    }
    return write(q->fd, start, pkt->len + t->hdr_bytes);
}

static void tx_assert(const struct mn_tap *t, const struct mn_pkt *pkt, uint32_t len)
{
    MN_ASSERT(pkt->csum != MN_CSUM_PARTIAL || t->nic.caps.tx_csum_tcp);
    MN_ASSERT(pkt->gso_size == 0 || (t->nic.caps.tx_gso && pkt->csum == MN_CSUM_PARTIAL));
    MN_ASSERT(len <= (pkt->gso_size != 0 ? t->nic.caps.tx_max_frame : t->mtu_frame));
}

static uint32_t tap_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_tap *t = (struct mn_tap *)nic;
    struct tap_queue *q = &t->queues[queue];
    uint32_t i;

    for (i = 0; i < n; i++) {
        uint32_t len = mn_pkt_frame_len(pkts[i]);
        ssize_t done;

        tx_assert(t, pkts[i], len);
        do {
            done = write_frame(t, q, pkts[i]);
        } while (MN_UNLIKELY(done < 0 && errno == EINTR));
        if (MN_LIKELY(done >= 0)) {
            q->stats.tx_frames++;
            q->stats.tx_bytes += len;
            set_link(t, 1);
        } else if (errno == EAGAIN) {
            q->stats.tx_full++;
            break;
        } else {
            note_error(t, q, &q->stats.tx_errors);
        }
        mn_pktpool_put_frame(&q->pool, pkts[i]);
    }
    return i;
}

static struct mn_pkt *tap_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct tap_queue *q = &((struct mn_tap *)nic)->queues[queue];

    return MN_UNLIKELY(size > q->pool.room) ? NULL : mn_pktpool_get(&q->pool);
}

static void tap_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct tap_queue *q = &((struct mn_tap *)nic)->queues[queue];

    mn_pktpool_put_frame(&q->pool, pkt);
}

static int tap_queue_fd(struct mn_nic *nic, uint32_t queue)
{
    return ((struct mn_tap *)nic)->queues[queue].fd;
}

static const struct mn_nic_ops tap_ops = {
    .rx_burst = tap_rx_burst,
    .tx_burst = tap_tx_burst,
    .pkt_alloc = tap_pkt_alloc,
    .pkt_free = tap_pkt_free,
    .queue_fd = tap_queue_fd,
};

/* Our MAC must not be the kernel's. Made from it, it stays the same from run to run on a persistent
 * device, so that the kernel's neighbour cache stays right. */
static int choose_mac(const struct mn_tap_config *cfg, struct mn_tap *t)
{
    static const uint8_t zero[6];
    uint8_t *mac = t->nic.mac;

    if (memcmp(cfg->mac, zero, sizeof(zero)) != 0) {
        if ((cfg->mac[0] & 1) != 0 ||
            (t->dev.has_kernel_mac && memcmp(cfg->mac, t->dev.kernel_mac, sizeof(zero)) == 0)) {
            return -EINVAL;
        }
        memcpy(mac, cfg->mac, sizeof(zero));
        return 0;
    }
    if (t->dev.has_kernel_mac) {
        memcpy(mac, t->dev.kernel_mac, sizeof(zero));
        mac[4] ^= 'M';
        mac[5] ^= 'N';
    } else if (getrandom(mac, sizeof(zero), 0) != (ssize_t)sizeof(zero)) {
        return -EIO;
    }
    mac[0] = (uint8_t)((mac[0] & 0xfe) | 0x02); /* not a group, locally administered */
    return 0;
}

static void fill_nic(struct mn_tap *t)
{
    bool vnet = t->dev.vnet && t->dev.csum;

    for (uint32_t i = 0; i < t->dev.queues; i++) {
        t->queues[i].fd = i == 0 ? t->dev.fd : t->dev.more_fds[i - 1];
        t->queues[i].burst = 1;
    }
    t->hdr_bytes = t->dev.vnet ? MN_VNET_HDR_BYTES : 0;
    t->mtu_frame = t->dev.mtu + MN_ETH_HLEN;
    t->nic.ops = &tap_ops;
    t->nic.caps = (struct mn_nic_caps){
        .mtu = t->dev.mtu,
        .rx_max_frame = TAP_ROOM_BYTES - 1,
        .tx_max_frame = vnet && t->dev.tso ? TAP_GSO_MAX_FRAME : t->mtu_frame,
        .queues = (uint16_t)t->dev.queues,
        .tx_csum_tcp = vnet,
        .tx_csum_udp = vnet,
        .tx_gso = vnet && t->dev.tso,
        .rx_csum_trusted = vnet,
    };
    t->nic.link_up = 1;
    t->nic.rx_fd = t->dev.fd;
}

static void tap_free(struct mn_tap *t)
{
    if (t->dev.ours) {
        (void)close(t->dev.fd);
        for (uint32_t i = 1; i < t->dev.queues; i++) {
            (void)close(t->dev.more_fds[i - 1]);
        }
    }
    for (uint32_t i = 0; i < MN_TAP_QUEUES_MAX; i++) {
        if (t->queues[i].pool.mem != NULL) {
            mn_pktpool_fini(&t->queues[i].pool);
        }
    }
    free(t);
}

static int tap_init(struct mn_tap *t, const struct mn_tap_config *cfg, const struct mn_tap_err *err)
{
    uint32_t pkts = cfg->pool_pkts != 0 ? cfg->pool_pkts : TAP_POOL_PKTS_DEFAULT;
    int rc = mn_tap_dev_open(cfg, &t->dev, err);

    for (uint32_t i = 0; rc == 0 && i < t->dev.queues; i++) {
        rc = mn_pktpool_init(&t->queues[i].pool, pkts, TAP_ROOM_BYTES);
        if (rc != 0) {
            return mn_tap_fail(err, rc, "tap: no memory for %u packets (at most %u)", pkts,
                               MN_PKTPOOL_PKTS_MAX);
        }
    }
    if (rc != 0) {
        return rc;
    }
    rc = choose_mac(cfg, t);
    if (rc != 0) {
        return mn_tap_fail(err, rc, "tap:%s: the MAC must be a unicast one and not the kernel's",
                           t->dev.name);
    }
    return 0;
}

int mn_tap_open(const struct mn_tap_config *cfg, struct mn_nic **out, char *err, size_t errlen)
{
    struct mn_tap *t = aligned_alloc(MN_CACHE_LINE, sizeof(*t));
    int rc;

    if (err != NULL && errlen > 0) {
        err[0] = '\0';
    }
    if (t == NULL) {
        return -ENOMEM;
    }
    memset(t, 0, sizeof(*t));
    rc = tap_init(t, cfg, &(struct mn_tap_err){.text = err, .size = errlen});
    if (rc != 0) {
        tap_free(t);
        return rc;
    }
    t->dev.ours = true;
    fill_nic(t);
    *out = &t->nic;
    return 0;
}

void mn_tap_close(struct mn_nic *nic)
{
    if (nic != NULL) {
        MN_ASSERT(nic->ops == &tap_ops);
        tap_free((struct mn_tap *)nic);
    }
}

void mn_tap_get_stats(const struct mn_nic *nic, struct mn_tap_stats *out)
{
    const struct mn_tap *t = (const struct mn_tap *)nic;

    MN_ASSERT(nic->ops == &tap_ops);
    *out = t->queues[0].stats;
    for (uint32_t i = 1; i < t->dev.queues; i++) {
        const struct mn_tap_stats *more = &t->queues[i].stats;

        out->rx_frames += more->rx_frames;
        out->rx_bytes += more->rx_bytes;
        out->rx_calls += more->rx_calls;
        out->rx_no_pkt += more->rx_no_pkt;
        out->rx_bad_vnet += more->rx_bad_vnet;
        out->rx_bad_len += more->rx_bad_len;
        out->rx_errors += more->rx_errors;
        out->tx_frames += more->tx_frames;
        out->tx_bytes += more->tx_bytes;
        out->tx_full += more->tx_full;
        out->tx_errors += more->tx_errors;
        if (out->last_errno == 0) {
            out->last_errno = more->last_errno;
        }
    }
}

const char *mn_tap_name(const struct mn_nic *nic)
{
    MN_ASSERT(nic->ops == &tap_ops);
    return ((const struct mn_tap *)nic)->dev.name;
}

bool mn_tap_kernel_mac(const struct mn_nic *nic, uint8_t mac[6])
{
    const struct mn_tap *t = (const struct mn_tap *)nic;

    MN_ASSERT(nic->ops == &tap_ops);
    memcpy(mac, t->dev.kernel_mac, sizeof(t->dev.kernel_mac));
    return t->dev.has_kernel_mac;
}
