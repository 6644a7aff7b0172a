/* SPDX-License-Identifier: MIT */
/*
 * The channel: memory shared between one application thread and the engines, and the rings in it.
 *
 * The region is a header (struct mn_chan_hdr), then one lane per engine. A lane is struct
 * mn_lane_shared (ring indices and wake flags, each written by one side only), six rings of fixed
 * slots and two pools of fixed-size buffers:
 *
 *   submit        app -> engine   struct mn_desc     message pieces, stream bytes, end-of-stream
 * and close marks, in order completed     engine -> app   uint32_t           transmit buffers that
 * came back (acknowledged or given up) deliver       engine -> app   struct mn_desc     message
 * pieces, stream bytes, end-of-stream and end-of-flow marks released      app -> engine   uint32_t
 * receive buffers that came back ctl_submit    app -> engine   struct mn_ctl_cmd  listen, connect,
 * options ctl_complete  engine -> app   struct mn_ctl_evt  their results, accepted flows, soft
 * errors
 *
 * Either side treats what the other one writes as hostile: an index or descriptor is read once into
 * private memory and checked. Indices run freely modulo 2^32; a ring has a power of two of slots;
 * `tail - head` is the fill.
 */
#ifndef MN_CHANNEL_H
#define MN_CHANNEL_H

#include "base.h"

#include <stdatomic.h>

#define MN_CHAN_MAGIC    0x4e41484354454e4dULL /* "MNETCHAN" in memory */
#define MN_CHAN_VERSION  1u
#define MN_MSG_MAX_BYTES (8u << 20)
#define MN_BUF_NONE      0xffffffffu
#define MN_FLOW_NONE     0xffffffffu

enum mn_proto { MN_PROTO_UDP = 0, MN_PROTO_TCP = 1, MN_PROTO_STREAM = 2 };

/* A flow id is a slot of the channel and a generation: a stale id never names a newer flow. */
#define MN_FLOW_SLOT(id)      ((id) & 0xffffu)
#define MN_FLOW_GEN(id)       ((uint16_t)((id) >> 16))
#define MN_FLOW_ID(slot, gen) (((uint32_t)(gen) << 16) | (slot))

/* Descriptor flags. */
enum {
    MN_DESC_FIRST = 1u << 0, /* first piece of a message */
    MN_DESC_LAST = 1u << 1,  /* last piece of a message */
    MN_DESC_URG = 1u << 2,   /* stream: urgent data ends with this piece (RFC 9293 3.8.5) */
    MN_DESC_FIN = 1u << 3,   /* submit: no more data from the application; deliver: the peer's FIN.
                                buf is MN_BUF_NONE */
    MN_DESC_CLOSE = 1u << 4, /* submit: the application gives the flow up; len = linger_ms (0: RST,
                                MN_LINGER_DEFAULT). No buf */
    MN_DESC_END = 1u << 5,   /* deliver: the flow's last event; len = errno (0 clean). Answer with
                                MN_CTL_RELEASE. No buf */
    MN_DESC_MORE =
        1u << 6, /* stream submit: more follows at once, hold a part-filled segment back for it */
};
#define MN_LINGER_DEFAULT 0xffffffffu

struct mn_desc {
    uint32_t buf;  /* buffer of the pool that the ring's producer took it from, or MN_BUF_NONE */
    uint32_t len;  /* bytes used in the buffer, from its start; for marks see above */
    uint32_t flow; /* flow id */
    uint16_t flags;
    uint16_t zero;
};
static_assert(sizeof(struct mn_desc) == 16, "descriptor layout is shared between processes");

enum mn_ctl_op {
    MN_CTL_LISTEN = 1,   /* local_ip (0: any of the engine's), local_port, proto, arg = backlog (0:
                            default) -> RESULT, value = listener id */
    MN_CTL_UNLISTEN = 2, /* flow = listener id -> RESULT */
    MN_CTL_CONNECT = 3,  /* local_ip (0: the engine's), remote_ip, remote_port, local_port (0:
                            chosen), proto, arg = timeout_ms (0: R2 for SYN) */
    MN_CTL_ACCEPT =
        4, /* flow: the application took the accepted flow out of its backlog; no answer */
    MN_CTL_RELEASE = 5, /* flow: the END mark was consumed, the slot may be used again; no answer */
    MN_CTL_SETOPT = 6,  /* flow, opt = enum mn_opt, value -> RESULT */
    MN_CTL_CANCEL =
        8, /* flow = token of a connect under way: its RESULT is -ECANCELED; no answer of its own */
    MN_CTL_GETOPT = 7, /* flow, opt -> RESULT with value */
};

enum mn_opt {
    MN_OPT_NODELAY = 1,         /* 0/1 */
    MN_OPT_KEEPALIVE = 2,       /* 0/1 */
    MN_OPT_KEEPIDLE_S = 3,      /* 1..2^20 s, default 7200 */
    MN_OPT_KEEPINTVL_S = 4,     /* 1..2^20 s, default 75 */
    MN_OPT_KEEPCNT = 5,         /* 1..255, default 9 */
    MN_OPT_USER_TIMEOUT_MS = 6, /* R2 of RFC 9293 3.8.3; 0: the default */
    MN_OPT_RCVBUF = 7,          /* receive window limit, bytes */
    MN_OPT_DSCP = 8,            /* 0..63 */
    MN_OPT_TTL = 9,             /* 1..255 */
    MN_OPT_STATE = 10,          /* read: enum mn_tcp_state */
    MN_OPT_MSS = 11,            /* read: effective send MSS; set before connect is not possible */
    MN_OPT_SNDQ = 12,           /* read: bytes queued and not yet acknowledged */
    MN_OPT_SRTT_US = 13,        /* read */
    MN_OPT_CWND = 14,           /* read, bytes */
    MN_OPT_SSTHRESH = 15,       /* read, bytes */
    MN_OPT_RETRANS = 16,        /* read: segments retransmitted */
    MN_OPT_QUICKACK = 17,       /* 0/1: acknowledge at once */
    MN_OPT_ISN = 18,    /* flow = MN_FLOW_NONE: initial sequence number of the next connection(s);
                           tests. value > 2^32: random again */
    MN_OPT_RTO_US = 19, /* read: current retransmission timeout */
    MN_OPT_MAXSEG = 20, /* upper bound of the send MSS, 88..65495 */
    MN_OPT_LINGER_MS = 21, /* what MN_LINGER_DEFAULT means for this flow */
};

struct mn_ctl_cmd {
    uint32_t op;
    uint32_t token; /* chosen by the application, comes back in the RESULT */
    uint32_t flow;
    uint32_t proto;
    uint32_t local_ip; /* host byte order, as are the ports */
    uint32_t remote_ip;
    uint16_t local_port;
    uint16_t remote_port;
    uint32_t arg;
    uint32_t opt;
    uint32_t zero;
    uint64_t value;
    uint8_t pad[16];
};
static_assert(sizeof(struct mn_ctl_cmd) == 64, "command layout is shared between processes");

enum mn_ctl_kind {
    MN_EVT_RESULT = 1, /* answer to the command with `token`: status 0 or a negative errno; connect:
                          flow and tuple */
    MN_EVT_ACCEPT = 2, /* a new flow on listener `listener` (its id): flow, tuple, proto */
    MN_EVT_SOFT =
        3, /* soft error on a flow (ICMP, R1 exceeded): status is a negative errno; advice only */
    MN_EVT_URGENT = 4, /* value = stream offset just behind the urgent data */
};

struct mn_ctl_evt {
    uint32_t kind;
    uint32_t token;
    uint32_t flow;
    int32_t status;
    uint32_t proto;
    uint32_t local_ip;
    uint32_t remote_ip;
    uint16_t local_port;
    uint16_t remote_port;
    uint32_t listener;
    uint32_t zero;
    uint64_t value;
    uint8_t pad[16];
};
static_assert(sizeof(struct mn_ctl_evt) == 64, "event layout is shared between processes");

/* The two indices of a ring, each on the cache line of the side that writes it. */
struct mn_ring_idx {
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t tail; /* producer */
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t head; /* consumer */
};
static_assert(sizeof(struct mn_ring_idx) == 128, "ring layout is shared between processes");

struct mn_lane_shared {
    struct mn_ring_idx submit, completed, deliver, released, ctl_submit, ctl_complete;
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t
        app_sleeps; /* written by the application: wake me after publishing */
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t
        engine_sleeps; /* written by the engine: kick me after publishing */
    _Alignas(MN_CACHE_LINE) _Atomic uint32_t
        closed; /* written by the engine: errno why the channel is dead, else 0 */
    _Alignas(MN_CACHE_LINE) uint32_t ip; /* of the lane's engine, host order; fixed at format */
};

/* What a channel is made of; equal on both sides, fixed at attach. A pool, with 4 bytes more for
 * each buffer, is at most 2^30 bytes. */
struct mn_chan_geometry {
    uint32_t n_lanes;   /* 1..64 */
    uint32_t buf_bytes; /* power of two, 512..65536 */
    uint32_t tx_bufs;   /* buffers owned by the application's side, 16..1<<20 */
    uint32_t rx_bufs;   /* buffers owned by the engine's side, 16..1<<20 */
    uint32_t flows_max; /* 1..65535 flows per lane */
    uint32_t ctl_slots; /* power of two, 16..4096 */
};

struct mn_chan_hdr {
    uint64_t magic;
    uint32_t version;
    uint32_t hdr_bytes;
    uint64_t total_bytes;
    uint64_t lane_stride;
    struct mn_chan_geometry geo;
    uint8_t pad[128 - 32 - sizeof(struct mn_chan_geometry)];
};
static_assert(sizeof(struct mn_chan_hdr) == 128, "header layout is shared between processes");

/* Offsets of a lane's parts from the lane's start, computed the same way on both sides. */
struct mn_lane_layout {
    uint32_t msg_slots_tx; /* submit: holds every transmit buffer and two marks per flow */
    uint32_t msg_slots_rx; /* deliver: holds every receive buffer and two marks per flow */
    uint32_t ret_slots_tx; /* completed: at least as many slots as transmit buffers */
    uint32_t ret_slots_rx; /* released */
    uint64_t submit_off, completed_off, deliver_off, released_off, ctl_submit_off, ctl_complete_off;
    uint64_t tx_pool_off, rx_pool_off;
    uint64_t stride;
};

/* 0, or -EINVAL when a value of geo is out of its range (*out is untouched then). */
int mn_chan_layout(const struct mn_chan_geometry *geo, struct mn_lane_layout *out);
/* Bytes of the whole region; 0 when geo is out of range. */
uint64_t mn_chan_bytes(const struct mn_chan_geometry *geo);
/* Writes header and empty rings into zeroed memory of mn_chan_bytes(geo), aligned to MN_CACHE_LINE.
 * 0, or -EINVAL (geometry, size, alignment). Pools and slots are not touched. */
int mn_chan_format(void *region, uint64_t region_bytes, const struct mn_chan_geometry *geo);
/* Says in lane i of a formatted region which address its engine has. */
void mn_chan_set_ip(void *region, uint32_t lane, uint32_t ip);
/* Checks header against region size and this build; 0, -EPROTO (not a channel, version), -EINVAL
 * (geometry, size or alignment). */
int mn_chan_check(const void *region, uint64_t region_bytes, struct mn_chan_geometry *geo_out);

/* Where lane `i` begins; its parts are at the offsets of struct mn_lane_layout from there. */
static inline uint8_t *mn_chan_lane(void *region, const struct mn_lane_layout *lay, uint32_t i)
{
    return (uint8_t *)region + sizeof(struct mn_chan_hdr) + (uint64_t)i * lay->stride;
}

/*
 * Ring cursors: private to one side. A producer writes slots at `pos` and makes them visible with
 * publish; a consumer looks at the slots below `limit` and gives them back with consume. The other
 * side's index is read only when the private copy says full or empty.
 */
struct mn_ring_prod {
    struct mn_ring_idx *idx;
    void *slots;
    uint32_t mask;
    uint32_t pos;       /* next slot to write */
    uint32_t published; /* what the other side has been told */
    uint32_t head;      /* last value read of the consumer's index */
};

struct mn_ring_cons {
    struct mn_ring_idx *idx;
    const void *slots;
    uint32_t mask;
    uint32_t pos;      /* next slot to read */
    uint32_t released; /* what the producer has been told */
    uint32_t limit;    /* last value read of the producer's index */
};

/* Cursors start where the side's own index stands: zero in a new region. */
static inline void mn_ring_prod_init(struct mn_ring_prod *r, struct mn_ring_idx *idx, void *slots,
                                     uint32_t n)
{
    uint32_t pos = atomic_load_explicit(&idx->tail, memory_order_relaxed);
    *r = (struct mn_ring_prod){
        .idx = idx, .slots = slots, .mask = n - 1, .pos = pos, .published = pos, .head = pos};
}

static inline void mn_ring_cons_init(struct mn_ring_cons *r, struct mn_ring_idx *idx,
                                     const void *slots, uint32_t n)
{
    uint32_t pos = atomic_load_explicit(&idx->head, memory_order_relaxed);
    *r = (struct mn_ring_cons){
        .idx = idx, .slots = slots, .mask = n - 1, .pos = pos, .released = pos, .limit = pos};
}

/* Free slots; negative (-EPROTO) when the consumer's index is impossible: it may only move from
 * where it was last seen towards what was published. */
static inline int64_t mn_ring_free(struct mn_ring_prod *r, uint32_t want)
{
    uint32_t used = r->pos - r->head;
    if (MN_LIKELY(r->mask + 1 - used >= want))
        return (int64_t)(r->mask + 1 - used);
    uint32_t head = atomic_load_explicit(&r->idx->head, memory_order_acquire);
    if (MN_UNLIKELY(r->published - head > r->published - r->head))
        return -EPROTO;
    r->head = head;
    return (int64_t)(r->mask + 1 - (r->pos - head));
}

/* Makes everything written so far visible; true if there was something. */
static inline bool mn_ring_publish(struct mn_ring_prod *r)
{
    if (r->pos == r->published)
        return false;
    r->published = r->pos;
    atomic_store_explicit(&r->idx->tail, r->pos, memory_order_release);
    return true;
}

/* Puts a line that was just written where all cores find it soon, in the cache they share. Without
 * it, the reader fetches it out of the writer's own cache, at twice the price. x86's cldemote, a
 * no-operation where it is not known; nothing elsewhere. */
static inline void mn_line_demote(const void *at)
{
#if defined(__x86_64__)
    __asm__ volatile("cldemote %0" ::"m"(*(const uint8_t *)at));
#else
    (void)at;
#endif
}

/* Takes a line that will soon be written away from the core that has read it. */
static inline void mn_prefetch_write(const void *at)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" ::"m"(*(const uint8_t *)at));
#else
    __builtin_prefetch(at, 1);
#endif
}

#define MN_HAND_OVER_DESCS 2u
#define MN_HAND_OVER_BYTES 256u

/* For a ring whose consumer is on another core, before it is published: hands over what few
 * descriptors there are with the first bytes of their buffers. More than a few are a stream, whose
 * reader fetches lines ahead by itself. The descriptors may have been rewritten by the other side:
 * they are read once and no byte outside of the pool is named. */
static inline void mn_ring_hand_over(const struct mn_ring_prod *r, const uint8_t *pool,
                                     uint32_t bufs, uint32_t buf_bytes)
{
    if (r->pos - r->published > MN_HAND_OVER_DESCS)
        return;
    for (uint32_t pos = r->published; pos != r->pos; pos++) {
        const struct mn_desc *d = &((const struct mn_desc *)r->slots)[pos & r->mask];
        uint32_t buf = d->buf, len = mn_min_u32(d->len, MN_HAND_OVER_BYTES);

        __asm__("" : "+r"(buf), "+r"(len));
        mn_line_demote(d);
        for (uint32_t off = 0; off < len && buf < bufs; off += MN_CACHE_LINE)
            mn_line_demote(pool + (uint64_t)buf * buf_bytes + off);
    }
}

/* The same for a ring of buffer numbers. */
static inline void mn_buf_hand_over(const struct mn_ring_prod *r)
{
    if (r->pos != r->published && r->pos - r->published <= MN_HAND_OVER_DESCS)
        mn_line_demote(&((const uint32_t *)r->slots)[r->published & r->mask]);
}

/* Filled slots; negative (-EPROTO) when the producer's index is impossible. */
static inline int64_t mn_ring_avail(struct mn_ring_cons *r)
{
    if (MN_LIKELY(r->limit != r->pos))
        return (int64_t)(r->limit - r->pos);
    uint32_t tail = atomic_load_explicit(&r->idx->tail, memory_order_acquire);
    if (MN_UNLIKELY(tail - r->pos > r->mask + 1))
        return -EPROTO;
    r->limit = tail;
    return (int64_t)(tail - r->pos);
}

/* Tells the producer about the slots read so far. */
static inline void mn_ring_consume(struct mn_ring_cons *r)
{
    if (r->pos == r->released)
        return;
    r->released = r->pos;
    atomic_store_explicit(&r->idx->head, r->pos, memory_order_release);
}

/* The slot to write next; the caller advances pos. */
static inline struct mn_desc *mn_desc_slot(struct mn_ring_prod *r)
{
    return &((struct mn_desc *)r->slots)[r->pos & r->mask];
}

/* Reads the next slot exactly once into private memory (the other side may be rewriting it) and
 * steps over it. */
static inline struct mn_desc mn_desc_next(struct mn_ring_cons *r)
{
    struct mn_desc d = ((const struct mn_desc *)r->slots)[r->pos++ & r->mask];
    /* Whatever is looked at from here on is the copy: the compiler can't go back to the slot. */
    __asm__("" : "+r"(d.buf), "+r"(d.len), "+r"(d.flow), "+r"(d.flags));
    return d;
}

static inline uint32_t mn_buf_next(struct mn_ring_cons *r)
{
    uint32_t buf = ((const uint32_t *)r->slots)[r->pos++ & r->mask];
    __asm__("" : "+r"(buf));
    return buf;
}

#endif
