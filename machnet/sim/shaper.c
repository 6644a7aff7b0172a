/* SPDX-License-Identifier: MIT */
#include "shaper.h"

#include "machnet/stack/core/wire/eth.h"

#include <stdlib.h>

#define QUEUE_SLOTS_MIN 16u
#define BITS_NS         (8 * MN_NS_PER_S) /* ns that a byte takes at 1 bit/s */
#define LN2_Q32         UINT64_C(2977044472)
#define LOG2_BITS       32u

static_assert((MN_SHAPE_QUEUE_PKTS & (MN_SHAPE_QUEUE_PKTS - 1)) == 0, "the ring has a mask");

/* A frame that waits: until when, and its bytes. */
struct waiting {
    uint64_t leave_ns;
    uint64_t len;
};

struct mn_shaper_queue {
    uint64_t bytes;
    uint32_t slots; /* a power of two */
    uint32_t head;
    uint32_t n;
    uint32_t pad;
    struct waiting ring[];
};

static const char *const fault_names[MN_FAULT_COUNT] = {
    [MN_FAULT_NONE] = "none",
    [MN_FAULT_LOSS] = "loss",
    [MN_FAULT_BURST] = "burst",
    [MN_FAULT_REORDER] = "reorder",
    [MN_FAULT_DUPLICATE] = "duplicate",
    [MN_FAULT_CORRUPT] = "corrupt",
    [MN_FAULT_JITTER] = "jitter",
    [MN_FAULT_QUEUE] = "queue",
    [MN_FAULT_MTU] = "mtu",
    [MN_FAULT_BLOCKED] = "blocked",
    [MN_FAULT_RULE] = "rule",
    [MN_FAULT_DOWN] = "down",
};

const char *mn_fault_name(uint32_t kind)
{
    return kind < MN_FAULT_COUNT ? fault_names[kind] : "?";
}

const char *mn_shape_check(const struct mn_shape *shape)
{
    const struct {
        const char *name;
        uint64_t value, min, max;
    } ranges[] = {
        {"latency_ns", shape->latency_ns, 0, MN_SHAPE_DELAY_MAX_NS},
        {"jitter_ns", shape->jitter_ns, 0, MN_SHAPE_DELAY_MAX_NS},
        {"latency_kind", shape->latency_kind, 0, MN_LATENCY_EXPONENTIAL},
        {"keep_order", shape->keep_order, 0, 1},
        {"queue_bytes", shape->queue_bytes, 0, MN_SHAPE_QUEUE_BYTES},
        {"queue_pkts", shape->queue_pkts, 0, MN_SHAPE_QUEUE_PKTS},
        {"loss_ppb", shape->loss_ppb, 0, MN_PPB_ONE},
        {"ge_bad_ppb", shape->ge_bad_ppb, 0, MN_PPB_ONE},
        {"ge_good_ppb", shape->ge_good_ppb, 0, MN_PPB_ONE},
        {"ge_loss_bad_ppb", shape->ge_loss_bad_ppb, 0, MN_PPB_ONE},
        {"ge_loss_good_ppb", shape->ge_loss_good_ppb, 0, MN_PPB_ONE},
        {"reorder_ppb", shape->reorder_ppb, 0, MN_PPB_ONE},
        {"duplicate_ppb", shape->duplicate_ppb, 0, MN_PPB_ONE},
        {"corrupt_ppb", shape->corrupt_ppb, 0, MN_PPB_ONE},
        {"blocked", shape->blocked, 0, 2},
        {"reorder_ns", shape->reorder_ns, 0, MN_SHAPE_DELAY_MAX_NS},
        {"duplicate_ns", shape->duplicate_ns, 0, MN_SHAPE_DELAY_MAX_NS},
        /* These may also be 0. */
        {"bandwidth_bps", shape->bandwidth_bps, MN_SHAPE_BPS_MIN, MN_SHAPE_BPS_MAX},
        {"mtu", shape->mtu, MN_SHAPE_MTU_MIN, MN_SHAPE_MTU_MAX},
    };

    for (size_t i = 0; i < MN_ARRAY_LEN(ranges); i++) {
        if (ranges[i].value != 0 &&
            (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)) {
            return ranges[i].name;
        }
    }
    return NULL;
}

int mn_shaper_init(struct mn_shaper *s, uint64_t seed, const char *name,
                   const struct mn_shape *shape)
{
    struct mn_rng root;
    uint64_t own;

    memset(s, 0, sizeof(*s));
    if (mn_shape_check(shape) != NULL) {
        return -EINVAL;
    }
    s->queue = calloc(1, sizeof(*s->queue) + QUEUE_SLOTS_MIN * sizeof(struct waiting));
    if (s->queue == NULL) {
        return -ENOMEM;
    }
    s->queue->slots = QUEUE_SLOTS_MIN;
    mn_rng_init(&root, seed, name);
    own = mn_rng_next(&root);
    for (uint32_t kind = 0; kind < MN_ARRAY_LEN(s->rng); kind++) {
        mn_rng_init(&s->rng[kind], own, fault_names[kind]);
    }
    s->shape = *shape;
    return 0;
}

void mn_shaper_fini(struct mn_shaper *s)
{
    free(s->queue);
    s->queue = NULL;
}

void mn_shaper_set(struct mn_shaper *s, const struct mn_shape *shape)
{
    MN_ASSERT(mn_shape_check(shape) == NULL);
    /* The fraction is in units of the old bandwidth. */
    if (shape->bandwidth_bps != s->shape.bandwidth_bps && s->free_rem != 0) {
        s->free_at_ns++;
        s->free_rem = 0;
    }
    if (shape->ge_bad_ppb == 0) {
        s->bad = false;
    }
    s->shape = *shape;
}

/* ---- what is drawn ------------------------------------------------------------------------- */

/* The draws of one frame, the same number whatever the shape says. */
struct draws {
    bool loss, burst, reorder, duplicate, corrupt;
    uint32_t bit;
    uint64_t delay_ns;
};

/* Mean 0, standard deviation jitter_ns: twelve uniform 16-bit numbers have one of 65536. */
static int64_t draw_normal(uint64_t seed, uint64_t jitter_ns)
{
    struct mn_rng r = {.state = seed};
    int64_t sum = -6 * 65535;

    for (int i = 0; i < 3; i++) {
        uint64_t v = mn_rng_next(&r);

        sum += (int64_t)((v & 0xffff) + (v >> 16 & 0xffff) + (v >> 32 & 0xffff) + (v >> 48));
    }
    return (int64_t)((__int128)jitter_ns * sum / 65536);
}

/* -log2(v / 2^64) in units of 2^-32. The fraction comes bit by bit: squaring a number between 1 and
 * 2 doubles its logarithm. */
static uint64_t minus_log2(uint64_t v)
{
    uint32_t zeros = (uint32_t)__builtin_clzll(v |= 1);
    uint64_t m = v << zeros; /* from 1 to 2, in units of 2^-63 */
    uint64_t log = 63u - zeros;

    for (uint32_t i = 0; i < LOG2_BITS; i++) {
        unsigned __int128 square = (unsigned __int128)m * m;
        bool two = (uint64_t)(square >> 127) != 0;

        m = (uint64_t)(square >> (two ? 64 : 63));
        log = log << 1 | two;
    }
    return (UINT64_C(64) << LOG2_BITS) - log;
}

static uint64_t draw_exponential(uint64_t v, uint64_t jitter_ns)
{
    uint64_t ln = (uint64_t)((unsigned __int128)minus_log2(v) * LN2_Q32 >> 32);

    return (uint64_t)((unsigned __int128)ln * jitter_ns >> 32);
}

static uint64_t draw_delay(struct mn_rng *r, const struct mn_shape *shape)
{
    uint64_t jitter = shape->jitter_ns;
    int64_t off = 0;
    uint64_t v;

    if (shape->latency_kind == MN_LATENCY_FIXED) {
        mn_rng_skip(r);
        return shape->latency_ns;
    }
    v = mn_rng_next(r);
    switch (shape->latency_kind) {
    case MN_LATENCY_UNIFORM:
        off = (int64_t)((unsigned __int128)v * (2 * jitter + 1) >> 64) - (int64_t)jitter;
        break;
    case MN_LATENCY_NORMAL:
        off = draw_normal(v, jitter);
        break;
    case MN_LATENCY_EXPONENTIAL:
        off = (int64_t)draw_exponential(v, jitter);
        break;
    default:
        break;
    }
    off += (int64_t)shape->latency_ns;
    return off > 0 ? (uint64_t)off : 0;
}

/* A number that decides nothing is skipped, which leaves the stream where it would be. */
static void draw(struct mn_shaper *s, uint32_t len, struct draws *d)
{
    const struct mn_shape *shape = &s->shape;
    struct mn_rng *rng = s->rng;
    uint32_t bits = len > MN_ETH_HLEN ? 8 * (len - MN_ETH_HLEN) : 0;

    d->loss = mn_rng_chance(&rng[MN_FAULT_LOSS], shape->loss_ppb);
    s->bad ^= mn_rng_chance(&rng[MN_FAULT_BURST], s->bad ? shape->ge_good_ppb : shape->ge_bad_ppb);
    d->burst = mn_rng_chance(&rng[MN_FAULT_BURST],
                             s->bad ? shape->ge_loss_bad_ppb : shape->ge_loss_good_ppb);
    d->reorder = mn_rng_chance(&rng[MN_FAULT_REORDER], shape->reorder_ppb);
    d->duplicate = mn_rng_chance(&rng[MN_FAULT_DUPLICATE], shape->duplicate_ppb);
    d->corrupt = mn_rng_chance(&rng[MN_FAULT_CORRUPT], shape->corrupt_ppb) && bits > 0;
    d->bit = 0;
    if (d->corrupt || s->force != NULL) {
        d->bit = (uint32_t)mn_rng_below(&rng[MN_FAULT_CORRUPT], mn_max_u32(bits, 1));
    } else {
        mn_rng_skip(&rng[MN_FAULT_CORRUPT]);
    }
    d->delay_ns = draw_delay(&rng[MN_FAULT_JITTER], shape);
}

/* ---- the queue and the transmitter --------------------------------------------------------- */

static uint64_t free_at(const struct mn_shaper *s)
{
    return s->free_at_ns + (s->free_rem != 0);
}

static void queue_expire(struct mn_shaper_queue *q, uint64_t now_ns)
{
    while (q->n > 0 && q->ring[q->head].leave_ns <= now_ns) {
        q->bytes -= q->ring[q->head].len;
        q->head = (q->head + 1) & (q->slots - 1);
        q->n--;
    }
    /* The front of the ring is the part that is in the cache. */
    if (q->n == 0) {
        q->head = 0;
    }
}

/* Twice the ring; false when there is no memory. */
static bool queue_grow(struct mn_shaper *s)
{
    struct mn_shaper_queue *q = s->queue;
    struct mn_shaper_queue *big =
        malloc(sizeof(*big) + 2 * (size_t)q->slots * sizeof(struct waiting));

    if (big == NULL) {
        return false;
    }
    *big = *q;
    big->slots = 2 * q->slots;
    big->head = 0;
    for (uint32_t i = 0; i < q->n; i++) {
        big->ring[i] = q->ring[(q->head + i) & (q->slots - 1)];
    }
    free(q);
    s->queue = big;
    return true;
}

/* Room for one frame more that has to wait, those that are held counted. */
static bool queue_room(struct mn_shaper *s, uint32_t len)
{
    uint32_t pkts = s->queue->n + s->held_pkts;
    uint32_t most = s->shape.queue_pkts != 0 ? s->shape.queue_pkts : MN_SHAPE_QUEUE_PKTS;
    uint64_t bytes = s->queue->bytes + s->held_bytes;

    if (pkts >= most || (s->shape.queue_bytes != 0 && bytes + len > s->shape.queue_bytes)) {
        return false;
    }
    return pkts < s->queue->slots || queue_grow(s);
}

/* Through the transmitter: when its last bit has left. A frame that has to wait has room. */
static uint64_t transmit(struct mn_shaper *s, uint64_t now_ns, uint32_t len)
{
    struct mn_shaper_queue *q = s->queue;
    uint64_t bps = s->shape.bandwidth_bps, work;

    if (free_at(s) <= now_ns) {
        s->free_at_ns = now_ns;
        s->free_rem = 0;
    } else {
        q->ring[(q->head + q->n) & (q->slots - 1)] =
            (struct waiting){.leave_ns = free_at(s), .len = len};
        q->n++;
        q->bytes += len;
    }
    if (bps != 0) {
        work = s->free_rem + (uint64_t)len * BITS_NS;
        s->free_at_ns += work / bps;
        s->free_rem = work % bps;
    }
    return free_at(s);
}

/* ---- verdicts ------------------------------------------------------------------------------ */

/* Whether a fault happens that was drawn, or was not. */
static bool happens(const struct mn_shaper *s, bool drawn, enum mn_fault kind, uint64_t frame_no)
{
    if (MN_LIKELY(!drawn)) {
        return MN_UNLIKELY(s->force != NULL) && s->force(s->force_ctx, kind, frame_no);
    }
    return s->permit == NULL || s->permit(s->permit_ctx, kind, frame_no);
}

static void drop(struct mn_shaper *s, struct mn_verdict *v, enum mn_fault kind)
{
    s->count[kind]++;
    v->faults = MN_FAULT_BIT(kind);
    v->drop = true;
}

/* Whether the frame dies before the queue. */
static bool lost(struct mn_shaper *s, const struct draws *d, struct mn_verdict *v)
{
    const struct mn_shape *shape = &s->shape;

    if (shape->blocked == 1) {
        drop(s, v, MN_FAULT_BLOCKED);
    } else if (shape->mtu != 0 && v->len > shape->mtu + MN_ETH_HLEN) {
        drop(s, v, MN_FAULT_MTU);
    } else if (happens(s, d->loss, MN_FAULT_LOSS, v->frame_no)) {
        drop(s, v, MN_FAULT_LOSS);
    } else if (happens(s, d->burst, MN_FAULT_BURST, v->frame_no)) {
        drop(s, v, MN_FAULT_BURST);
    }
    return v->drop;
}

static bool met(struct mn_shaper *s, struct mn_verdict *v, bool drawn, enum mn_fault kind)
{
    if (!happens(s, drawn, kind, v->frame_no)) {
        return false;
    }
    s->count[kind]++;
    v->faults |= MN_FAULT_BIT(kind);
    return true;
}

/* What happens to a frame that passes, but for times. */
static void mark(struct mn_shaper *s, const struct draws *d, struct mn_verdict *v)
{
    bool jitter = d->delay_ns != s->shape.latency_ns;

    v->delay_ns = met(s, v, jitter, MN_FAULT_JITTER) ? d->delay_ns : s->shape.latency_ns;
    (void)met(s, v, d->reorder, MN_FAULT_REORDER);
    v->dup = met(s, v, d->duplicate, MN_FAULT_DUPLICATE);
    if (met(s, v, d->corrupt, MN_FAULT_CORRUPT)) {
        v->bit = d->bit;
    }
    if (v->faults == 0) {
        s->count[MN_FAULT_NONE]++;
    }
}

/* Times of a frame that goes to the transmitter now. A frame that is held back for reordering must
 * not hold back those behind it, so it counts for their order with the time without that. */
static void schedule(struct mn_shaper *s, uint64_t now_ns, struct mn_verdict *v)
{
    uint64_t at_ns = transmit(s, now_ns, v->len) + v->delay_ns;

    if (s->shape.keep_order) {
        at_ns = mn_max_u64(at_ns, s->last_at_ns);
    }
    s->last_at_ns = mn_max_u64(at_ns, s->last_at_ns);
    if ((v->faults & MN_FAULT_BIT(MN_FAULT_REORDER)) != 0) {
        at_ns += s->shape.reorder_ns;
    }
    v->at_ns = at_ns;
    v->dup_at_ns = v->dup ? at_ns + s->shape.duplicate_ns : 0;
}

void mn_shaper_offer(struct mn_shaper *s, uint64_t now_ns, uint32_t len, struct mn_verdict *out)
{
    struct draws d;

    *out = (struct mn_verdict){.frame_no = s->frames++, .len = len};
    draw(s, len, &d);
    if (lost(s, &d, out)) {
        return;
    }
    queue_expire(s->queue, now_ns);
    if ((s->shape.blocked != 0 || free_at(s) > now_ns) && !queue_room(s, len)) {
        drop(s, out, MN_FAULT_QUEUE);
        return;
    }
    mark(s, &d, out);
    if (s->shape.blocked != 0) {
        out->held = true;
        s->held_pkts++;
        s->held_bytes += len;
        return;
    }
    schedule(s, now_ns, out);
}

void mn_shaper_forget(struct mn_shaper *s, const struct mn_verdict *v)
{
    MN_ASSERT(v->held && s->held_pkts > 0 && s->held_bytes >= v->len);
    s->held_pkts--;
    s->held_bytes -= v->len;
}

void mn_shaper_release(struct mn_shaper *s, uint64_t now_ns, struct mn_verdict *v)
{
    MN_ASSERT(s->shape.blocked == 0);
    queue_expire(s->queue, now_ns);
    mn_shaper_forget(s, v);
    v->held = false;
    schedule(s, now_ns, v);
}

uint32_t mn_shaper_queued(const struct mn_shaper *s, uint64_t now_ns)
{
    const struct mn_shaper_queue *q = s->queue;
    uint32_t gone = 0;

    while (gone < q->n && q->ring[(q->head + gone) & (q->slots - 1)].leave_ns <= now_ns) {
        gone++;
    }
    return q->n - gone + s->held_pkts;
}

void mn_shaper_corrupt(uint8_t *frame, uint32_t len, uint32_t bit)
{
    uint32_t at = MN_ETH_HLEN + bit / 8;

    if (at < len) {
        frame[at] ^= (uint8_t)(0x80u >> bit % 8);
    }
}
