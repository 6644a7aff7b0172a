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

struct mn_tap {
    struct mn_nic nic; /* the first member: the operations find the TAP by it */
    struct mn_pktpool pool;
    int fd;
    uint32_t hdr_bytes; /* of the vnet header; 0: there is none */
    uint32_t burst;     /* reads to make before what was read is handed over */
    uint32_t mtu_frame; /* largest frame without gso_size */
    struct mn_tap_dev dev;
    struct mn_tap_stats stats;
};

/* Notes an error of the device; the link counts as down until a call succeeds again. */
static void note_error(struct mn_tap *t, uint64_t *counter)
{
    (*counter)++;
    t->stats.last_errno = errno;
    if (errno == EIO || errno == EBADFD) {
        t->nic.link_up = 0;
    }
}

/* Reads one frame into pkt: 1, 0 (nothing there, or the device failed), or -EINVAL for a frame that
 * is not to be believed. */
static int read_frame(struct mn_tap *t, struct mn_pkt *pkt)
{
    uint8_t *start = pkt->data - t->hdr_bytes;
    uint32_t size = pkt->room + t->hdr_bytes;
    ssize_t n;

    do {
        t->stats.rx_calls++;
        n = read(t->fd, start, size);
    } while (MN_UNLIKELY(n < 0 && errno == EINTR));
    if (n < 0) {
        if (MN_UNLIKELY(errno != EAGAIN)) {
            note_error(t, &t->stats.rx_errors);
        }
        return 0;
    }
    t->nic.link_up = 1;
    if (MN_UNLIKELY((uint32_t)n < t->hdr_bytes + MN_ETH_HLEN || (uint32_t)n >= size)) {
        t->stats.rx_bad_len++;
        return -EINVAL;
    }
    pkt->len = (uint32_t)n - t->hdr_bytes;
    if (t->hdr_bytes != 0 && MN_UNLIKELY(mn_vnet_read(start, pkt) != 0)) {
        t->stats.rx_bad_vnet++;
        return -EINVAL;
    }
    t->stats.rx_frames++;
    t->stats.rx_bytes += pkt->len;
    return 1;
}

/* How many frames to read before handing them over follows from the traffic: a frame that comes
 * alone is not held up by a read that finds nothing, and a stream is taken in growing bursts. */
static uint32_t tap_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_tap *t = (struct mn_tap *)nic;
    uint32_t got = 0, reads = 0;

    (void)queue;
    n = mn_min_u32(n, t->burst);
    while (got < n && reads < TAP_BURST_MAX) {
        struct mn_pkt *pkt = mn_pktpool_get(&t->pool);
        int rc;

        if (MN_UNLIKELY(pkt == NULL)) {
            t->stats.rx_no_pkt++;
            return got;
        }
        rc = read_frame(t, pkt);
        reads++;
        if (MN_LIKELY(rc > 0)) {
            pkts[got++] = pkt;
            continue;
        }
        mn_pktpool_put(&t->pool, pkt);
        if (rc == 0) {
            t->burst = mn_max_u32(got, 1);
            return got;
        }
    }
    t->burst = mn_min_u32(t->burst * 2, TAP_BURST_MAX);
    return got;
}

/* The frame's pieces behind `hdr`, for writev. */
static ssize_t write_pieces(struct mn_tap *t, uint8_t *hdr, const struct mn_pkt *pkt)
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
    return writev(t->fd, iov, n);
}

static ssize_t write_frame(struct mn_tap *t, struct mn_pkt *pkt)
{
    uint8_t hdr[MN_VNET_HDR_BYTES];
    uint8_t *start = pkt->data - t->hdr_bytes;

    if (MN_UNLIKELY(pkt->next != NULL || start < mn_pktpool_buf(pkt))) {
        mn_vnet_write(hdr, pkt);
        return write_pieces(t, hdr, pkt);
    }
    if (t->hdr_bytes != 0) {
        mn_vnet_write(start, pkt);
    }
    return write(t->fd, start, pkt->len + t->hdr_bytes);
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
    uint32_t i;

    (void)queue;
    for (i = 0; i < n; i++) {
        uint32_t len = mn_pkt_frame_len(pkts[i]);
        ssize_t done;

        tx_assert(t, pkts[i], len);
        do {
            done = write_frame(t, pkts[i]);
        } while (MN_UNLIKELY(done < 0 && errno == EINTR));
        if (MN_LIKELY(done >= 0)) {
            t->stats.tx_frames++;
            t->stats.tx_bytes += len;
            t->nic.link_up = 1;
        } else if (errno == EAGAIN) {
            t->stats.tx_full++;
            break;
        } else {
            note_error(t, &t->stats.tx_errors);
        }
        mn_pktpool_put_frame(&t->pool, pkts[i]);
    }
    return i;
}

static struct mn_pkt *tap_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_tap *t = (struct mn_tap *)nic;

    (void)queue;
    return MN_UNLIKELY(size > t->pool.room) ? NULL : mn_pktpool_get(&t->pool);
}

static void tap_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct mn_tap *t = (struct mn_tap *)nic;

    (void)queue;
    mn_pktpool_put_frame(&t->pool, pkt);
}

static const struct mn_nic_ops tap_ops = {
    .rx_burst = tap_rx_burst,
    .tx_burst = tap_tx_burst,
    .pkt_alloc = tap_pkt_alloc,
    .pkt_free = tap_pkt_free,
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

    t->fd = t->dev.fd;
    t->hdr_bytes = t->dev.vnet ? MN_VNET_HDR_BYTES : 0;
    t->burst = 1;
    t->mtu_frame = t->dev.mtu + MN_ETH_HLEN;
    t->nic.ops = &tap_ops;
    t->nic.caps = (struct mn_nic_caps){
        .mtu = t->dev.mtu,
        .rx_max_frame = TAP_ROOM_BYTES - 1,
        .tx_max_frame = vnet && t->dev.tso ? TAP_GSO_MAX_FRAME : t->mtu_frame,
        .queues = 1,
        .tx_csum_tcp = vnet,
        .tx_csum_udp = vnet,
        .tx_gso = vnet && t->dev.tso,
        .rx_csum_trusted = vnet,
    };
    t->nic.link_up = 1;
    t->nic.rx_fd = t->fd;
}

static void tap_free(struct mn_tap *t)
{
    if (t->dev.ours) {
        (void)close(t->dev.fd);
    }
    mn_pktpool_fini(&t->pool);
    free(t);
}

static int tap_init(struct mn_tap *t, const struct mn_tap_config *cfg, const struct mn_tap_err *err)
{
    uint32_t pkts = cfg->pool_pkts != 0 ? cfg->pool_pkts : TAP_POOL_PKTS_DEFAULT;
    int rc = mn_pktpool_init(&t->pool, pkts, TAP_ROOM_BYTES);

    if (rc != 0) {
        return mn_tap_fail(err, rc, "tap: no memory for %u packets (at most %u)", pkts,
                           MN_PKTPOOL_PKTS_MAX);
    }
    rc = mn_tap_dev_open(cfg, &t->dev, err);
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
    struct mn_tap *t = calloc(1, sizeof(*t));
    int rc;

    if (err != NULL && errlen > 0) {
        err[0] = '\0';
    }
    if (t == NULL) {
        return -ENOMEM;
    }
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
    MN_ASSERT(nic->ops == &tap_ops);
    *out = ((const struct mn_tap *)nic)->stats;
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
