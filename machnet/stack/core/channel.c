/* SPDX-License-Identifier: MIT */
/* Layout of a channel's memory: the same computation on both sides, from the geometry alone. */
#include "channel.h"

#define MN_CHAN_PAGE_BYTES 4096u

static bool in_range(uint32_t v, uint32_t lo, uint32_t hi)
{
    return v >= lo && v <= hi;
}

static bool is_pow2(uint32_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

static uint32_t pow2_ceil(uint32_t v)
{
    uint32_t p = 1;

    while (p < v) {
        p <<= 1;
    }
    return p;
}

static bool geo_ok(const struct mn_chan_geometry *geo)
{
    return in_range(geo->n_lanes, 1, 64) && in_range(geo->buf_bytes, 512, 65536) &&
           is_pow2(geo->buf_bytes) && in_range(geo->tx_bufs, 16, 1u << 20) &&
           in_range(geo->rx_bufs, 16, 1u << 20) && in_range(geo->flows_max, 1, 65535) &&
           in_range(geo->ctl_slots, 16, 4096) && is_pow2(geo->ctl_slots) &&
           /* What one flow may have queued or unread stays within sequence arithmetic. */
           (uint64_t)geo->tx_bufs * (geo->buf_bytes + 4) <= 1u << 30 &&
           (uint64_t)geo->rx_bufs * (geo->buf_bytes + 4) <= 1u << 30;
}

/* Takes `bytes` at the next offset that is a multiple of `align`, as counted from the region's
 * start: lane 0 begins behind the header, and the lanes' stride is a multiple of every `align`. */
static uint64_t carve(uint64_t *off, uint64_t bytes, uint64_t align)
{
    uint64_t abs = sizeof(struct mn_chan_hdr) + *off;
    uint64_t at = (abs + align - 1) / align * align - sizeof(struct mn_chan_hdr);

    *off = at + bytes;
    return at;
}

/* The largest channel is 2^43 bytes or so: nothing below can overflow 64 bits. */
int mn_chan_layout(const struct mn_chan_geometry *geo, struct mn_lane_layout *out)
{
    uint64_t off = sizeof(struct mn_lane_shared);
    uint64_t pool_align;
    struct mn_lane_layout l;

    if (!geo_ok(geo)) {
        return -EINVAL;
    }
    pool_align = mn_min_u32(geo->buf_bytes, MN_CHAN_PAGE_BYTES);
    l.msg_slots_tx = pow2_ceil(geo->tx_bufs + 2 * geo->flows_max);
    l.msg_slots_rx = pow2_ceil(geo->rx_bufs + 2 * geo->flows_max);
    l.ret_slots_tx = pow2_ceil(geo->tx_bufs);
    l.ret_slots_rx = pow2_ceil(geo->rx_bufs);
    l.submit_off = carve(&off, (uint64_t)l.msg_slots_tx * sizeof(struct mn_desc), MN_CACHE_LINE);
    l.completed_off = carve(&off, (uint64_t)l.ret_slots_tx * sizeof(uint32_t), MN_CACHE_LINE);
    l.deliver_off = carve(&off, (uint64_t)l.msg_slots_rx * sizeof(struct mn_desc), MN_CACHE_LINE);
    l.released_off = carve(&off, (uint64_t)l.ret_slots_rx * sizeof(uint32_t), MN_CACHE_LINE);
    l.ctl_submit_off =
        carve(&off, (uint64_t)geo->ctl_slots * sizeof(struct mn_ctl_cmd), MN_CACHE_LINE);
    l.ctl_complete_off =
        carve(&off, (uint64_t)geo->ctl_slots * sizeof(struct mn_ctl_evt), MN_CACHE_LINE);
    l.tx_pool_off = carve(&off, (uint64_t)geo->tx_bufs * geo->buf_bytes, pool_align);
    l.rx_pool_off = carve(&off, (uint64_t)geo->rx_bufs * geo->buf_bytes, pool_align);
    l.stride = (off + MN_CHAN_PAGE_BYTES - 1) / MN_CHAN_PAGE_BYTES * MN_CHAN_PAGE_BYTES;
    *out = l;
    return 0;
}

static uint64_t total_bytes(const struct mn_chan_geometry *geo, const struct mn_lane_layout *l)
{
    return sizeof(struct mn_chan_hdr) + geo->n_lanes * l->stride;
}

uint64_t mn_chan_bytes(const struct mn_chan_geometry *geo)
{
    struct mn_lane_layout l;

    return mn_chan_layout(geo, &l) < 0 ? 0 : total_bytes(geo, &l);
}

static bool aligned(const void *region)
{
    return ((uintptr_t)region & (MN_CACHE_LINE - 1)) == 0;
}

int mn_chan_format(void *region, uint64_t region_bytes, const struct mn_chan_geometry *geo)
{
    struct mn_lane_layout l;
    struct mn_chan_hdr hdr;
    uint64_t total;

    if (mn_chan_layout(geo, &l) < 0) {
        return -EINVAL;
    }
    total = total_bytes(geo, &l);
    if (region == NULL || !aligned(region) || region_bytes < total) {
        return -EINVAL;
    }
    hdr = (struct mn_chan_hdr){
        .magic = MN_CHAN_MAGIC,
        .version = MN_CHAN_VERSION,
        .hdr_bytes = sizeof(struct mn_chan_hdr),
        .total_bytes = total,
        .lane_stride = l.stride,
        .geo = *geo,
    };
    memcpy(region, &hdr, sizeof(hdr));
    for (uint32_t i = 0; i < geo->n_lanes; i++) {
        memset(mn_chan_lane(region, &l, i), 0, sizeof(struct mn_lane_shared));
    }
    return 0;
}

void mn_chan_set_ip(void *region, uint32_t lane, uint32_t ip)
{
    const struct mn_chan_hdr *hdr = region;
    uint8_t *at = (uint8_t *)region + sizeof(*hdr) + lane * hdr->lane_stride;

    ((struct mn_lane_shared *)(void *)at)->ip = ip;
}

int mn_chan_check(const void *region, uint64_t region_bytes, struct mn_chan_geometry *geo_out)
{
    struct mn_lane_layout l;
    struct mn_chan_hdr hdr;

    if (region == NULL || !aligned(region) || region_bytes < sizeof(hdr)) {
        return -EINVAL;
    }
    memcpy(&hdr, region, sizeof(hdr));
    if (hdr.magic != MN_CHAN_MAGIC || hdr.version != MN_CHAN_VERSION ||
        hdr.hdr_bytes != sizeof(hdr)) {
        return -EPROTO;
    }
    if (mn_chan_layout(&hdr.geo, &l) < 0 || hdr.lane_stride != l.stride ||
        hdr.total_bytes != total_bytes(&hdr.geo, &l) || hdr.total_bytes > region_bytes) {
        return -EINVAL;
    }
    *geo_out = hdr.geo;
    return 0;
}
