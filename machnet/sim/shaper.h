/* SPDX-License-Identifier: MIT */
/* What one direction of a link does to a frame: queue, bandwidth, latency and faults.
 *
 * A pure model: no packets and no clock. The caller says "this frame, now" and is told what becomes
 * of it; simulated links (simnet.h) and the fault layer around a real NIC (faultnic.h) use it
 * alike.
 *
 * Order, as on a real path: blocked (partition), MTU, loss, burst loss, queue with tail drop,
 * serialisation at the bandwidth, latency and jitter, then reorder, duplicate, corrupt. Each kind
 * draws from its own stream, once per frame whether it is switched on or not and whatever becomes
 * of the frame, so that switching one on changes no other. No floating point: the same seed gives
 * the same verdicts on every machine.
 *
 * The queue holds the frames that wait for the transmitter; the one on the transmitter is not in
 * it. A frame takes 8e9 * len / bandwidth_bps ns there; fractions of a nanosecond are carried on
 * exactly, and a time that is told is rounded up. */
#ifndef MN_SIM_SHAPER_H
#define MN_SIM_SHAPER_H

#include "rng.h"

#define MN_PPB_ONE 1000000000u /* probabilities are in parts per billion */

/* Bounds of a shape; mn_shape_check knows them. */
#define MN_SHAPE_DELAY_MAX_NS (UINT64_C(86400) * MN_NS_PER_S) /* of each duration: 24 h */
#define MN_SHAPE_BPS_MIN      UINT64_C(1000)
#define MN_SHAPE_BPS_MAX      UINT64_C(1000000000000000)
#define MN_SHAPE_QUEUE_PKTS   65536u /* most that a queue holds, also when it has no bound */
#define MN_SHAPE_QUEUE_BYTES  (UINT64_C(1) << 40)
#define MN_SHAPE_MTU_MIN      68u
#define MN_SHAPE_MTU_MAX      65535u

/* None goes below 0. The normal distribution is a sum of twelve uniform ones: it ends at six
 * standard deviations, and its grain is jitter_ns / 65536. The exponential one is exact to 1e-9 of
 * the value and ends at 44 means. */
enum mn_latency_kind {
    MN_LATENCY_FIXED = 0,   /* latency_ns */
    MN_LATENCY_UNIFORM,     /* latency_ns +- jitter_ns, each as likely */
    MN_LATENCY_NORMAL,      /* mean latency_ns, standard deviation jitter_ns */
    MN_LATENCY_EXPONENTIAL, /* latency_ns, and an exponential share of mean jitter_ns on top */
};

struct mn_shape {
    uint64_t latency_ns;
    uint64_t jitter_ns;
    uint32_t latency_kind;  /* enum mn_latency_kind */
    uint32_t keep_order;    /* jitter never lets a frame overtake another */
    uint64_t bandwidth_bps; /* bits per second of Ethernet frames; 0: no limit */
    uint64_t queue_bytes;   /* bound of the queue before the bandwidth; 0: none */
    uint32_t queue_pkts;    /* the same in frames; 0: none */
    uint32_t mtu;           /* bytes of the IP packet; longer frames are lost; 0: none */
    uint32_t loss_ppb;      /* each frame by itself */
    /* Gilbert-Elliott: chance of going from good to bad and back, per frame, and of losing a frame
     * in each state. All 0: off. */
    uint32_t ge_bad_ppb, ge_good_ppb, ge_loss_bad_ppb, ge_loss_good_ppb;
    uint32_t reorder_ppb;   /* a frame is held back by reorder_ns on top of the rest */
    uint32_t duplicate_ppb; /* a second copy arrives duplicate_ns after the first */
    uint32_t corrupt_ppb;   /* one bit of the frame is inverted (behind the Ethernet header) */
    uint32_t blocked;       /* 1: nothing passes (partition); 2: clogged: frames wait in the queue
                               until it is 0 again */
    uint64_t reorder_ns;
    uint64_t duplicate_ns;
};

/* Kinds of faults, also in the record of a run. The order is part of recorded schedules. */
enum mn_fault {
    MN_FAULT_NONE = 0,
    MN_FAULT_LOSS,
    MN_FAULT_BURST,
    MN_FAULT_REORDER,
    MN_FAULT_DUPLICATE,
    MN_FAULT_CORRUPT,
    MN_FAULT_JITTER, /* never drops: only counted for schedules */
    /* Not drawn: */
    MN_FAULT_QUEUE, /* tail drop */
    MN_FAULT_MTU,
    MN_FAULT_BLOCKED, /* partition */
    MN_FAULT_RULE,
    MN_FAULT_DOWN, /* host crashed, or nobody there */
    MN_FAULT_COUNT
};
#define MN_FAULT_BIT(kind) (1u << (kind))

struct mn_shaper_queue;

struct mn_shaper {
    struct mn_shape shape;
    struct mn_rng rng[MN_FAULT_QUEUE]; /* by fault kind; [MN_FAULT_JITTER] is the latency's */
    uint64_t frames;                   /* offered so far: a frame's number is its count, from 0 */
    uint64_t free_at_ns;               /* when the transmitter is free, and the fraction behind */
    uint64_t free_rem;                 /* it, in units of 1 / bandwidth_bps ns */
    uint64_t last_at_ns;               /* last arrival, for keep_order */
    uint64_t held_bytes;               /* of frames that were told to be held */
    uint32_t held_pkts;
    bool bad; /* Gilbert-Elliott state */
    /* For replays: when set, drawn faults only happen if it says so. Asked once a frame and kind,
     * only where the draw and the rest of the shape would have it happen; about MN_FAULT_JITTER
     * where the latency drawn is not latency_ns (false: then it is). */
    bool (*permit)(void *ctx, enum mn_fault kind, uint64_t frame_no);
    void *permit_ctx;
    /* The other way round: a fault that was not drawn happens where this says so. NULL: nowhere. */
    bool (*force)(void *ctx, enum mn_fault kind, uint64_t frame_no);
    void *force_ctx;
    uint64_t count[MN_FAULT_COUNT]; /* frames that met with each kind; NONE: with none */
    /* The frames that wait: a ring that grows up to MN_SHAPE_QUEUE_PKTS, owned. */
    struct mn_shaper_queue *queue;
};

struct mn_verdict {
    uint64_t frame_no;
    uint32_t faults; /* bits MN_FAULT_BIT */
    uint32_t len;
    bool drop;
    bool held; /* clogged: the caller keeps the frame and this, for mn_shaper_release */
    bool dup;
    uint64_t at_ns;     /* arrival */
    uint64_t dup_at_ns; /* arrival of the copy, never before the frame */
    uint64_t delay_ns;  /* drawn latency */
    uint32_t bit;       /* which bit is inverted, counted from the first bit behind the Ethernet
                           header; with MN_FAULT_CORRUPT */
};

/* name: of the direction, e.g. "a>b"; its streams come from it and the seed. 0; -EINVAL (a shape
 * that mn_shape_check refuses) or -ENOMEM. */
int mn_shaper_init(struct mn_shaper *s, uint64_t seed, const char *name,
                   const struct mn_shape *shape);
void mn_shaper_fini(struct mn_shaper *s);
/* NULL, or the name of the field that is out of its range. */
const char *mn_shape_check(const struct mn_shape *shape);
/* From now on; frames on the way, and in the queue before the transmitter, keep their arrival. The
 * shape must be one that mn_shape_check passes. Where it ends a clog, the caller releases what it
 * holds, in order, before it offers a further frame. */
void mn_shaper_set(struct mn_shaper *s, const struct mn_shape *shape);
/* A frame of len bytes (with its Ethernet header) at now_ns, which never goes back. */
void mn_shaper_offer(struct mn_shaper *s, uint64_t now_ns, uint32_t len, struct mn_verdict *out);
/* A frame that was held goes on to the transmitter: v is its verdict, with held now false and
 * arrivals filled in. Only while blocked is 0. */
void mn_shaper_release(struct mn_shaper *s, uint64_t now_ns, struct mn_verdict *v);
/* A frame that was held is forgotten (its host went down). */
void mn_shaper_forget(struct mn_shaper *s, const struct mn_verdict *v);
/* Frames that wait for the transmitter at now_ns, held ones included. */
uint32_t mn_shaper_queued(const struct mn_shaper *s, uint64_t now_ns);
/* Inverts the bit that the verdict names; a bit beyond the frame: none. */
void mn_shaper_corrupt(uint8_t *frame, uint32_t len, uint32_t bit);
/* "loss", "burst", "reorder", ...; "?" for a number that is no kind. */
const char *mn_fault_name(uint32_t kind);

#endif
