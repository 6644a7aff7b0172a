/* SPDX-License-Identifier: MIT */
/* The record of the last frames, and captures: what left a node with its fate, what reached one.
 *
 * The bytes lie in slots of three sizes, so that a record of many short frames takes little room;
 * each size's memory is handed out from the bottom and given back to a queue, and what is not used
 * is not touched. A frame that came in as it went out shares the slot of that entry. It is a queue
 * because the slot that comes next is then known one frame ahead: its cache lines are fetched
 * meanwhile, for which the copy would wait otherwise. */
#include "simnet_int.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLASSES     3u
#define SMALL_BYTES 128u
#define FRAME_BYTES 1536u
#define FATE_BYTES  192u
#define LINE_BYTES  64u

struct slots {
    uint8_t *mem;
    uint64_t mem_bytes;
    uint8_t *users; /* of each slot: entries that refer to it */
    uint32_t *free; /* a circle of those that were given back */
    uint32_t first_free, n_free;
    uint32_t n;
    uint32_t size; /* of each */
    uint32_t high; /* those below were used */
};

struct rec {
    struct mn_sim_record r;
    uint32_t cls, slot;
};

struct record {
    struct rec *ring;
    uint32_t pkts; /* its size */
    uint32_t snap;
    uint64_t next; /* sequence number */
    uint32_t at;   /* of the next, in the ring */
    struct slots slots[CLASSES];
};

/* ---- fates --------------------------------------------------------------------------------- */

struct text {
    char *buf;
    uint32_t size, len;
};

static void say(struct text *t, const char *what)
{
    int n = snprintf(t->buf + t->len, t->size - t->len, "%s%s", t->len > 0 ? ", " : "", what);

    t->len = mn_min_u32(t->len + (uint32_t)n, t->size - 1);
}

static void say_delay(struct text *t, uint64_t ns)
{
    char buf[48];

    (void)snprintf(buf, sizeof(buf), "delayed %llu.%03llu ms", (unsigned long long)(ns / 1000000),
                   (unsigned long long)(ns / 1000 % 1000));
    say(t, buf);
}

static const char *const fate_names[MN_FAULT_COUNT] = {
    [MN_FAULT_LOSS] = "lost",         [MN_FAULT_BURST] = "burst loss",
    [MN_FAULT_REORDER] = "reordered", [MN_FAULT_DUPLICATE] = "duplicated",
    [MN_FAULT_QUEUE] = "queue full",  [MN_FAULT_MTU] = "longer than the MTU",
    [MN_FAULT_BLOCKED] = "partition", [MN_FAULT_DOWN] = "host down",
};

static const char *const rule_names[] = {
    [MN_RULE_PASS] = "rule: passed",          [MN_RULE_DROP] = "rule: dropped",
    [MN_RULE_DUPLICATE] = "rule: duplicated", [MN_RULE_REPLACED] = "rule: replaced",
    [MN_RULE_ABORT] = "rule: failed",
};

static void say_rule(struct text *t, const struct mn_sim_record *r)
{
    if (r->rule == MN_RULE_PASS && r->delay_ns != 0) {
        say(t, "rule");
    } else {
        say(t, r->rule < MN_ARRAY_LEN(rule_names) ? rule_names[r->rule] : "rule: failed");
    }
}

uint32_t mn_simnet_fate(const struct mn_sim_record *r, char *buf, uint32_t size)
{
    struct text t = {.buf = buf, .size = size};

    if (size == 0) {
        return 0;
    }
    buf[0] = '\0';
    if (r->faults == 0 && r->at_ns != MN_NEVER) {
        return 0;
    }
    if ((r->faults & MN_FAULT_BIT(MN_FAULT_RULE)) != 0) {
        say_rule(&t, r);
    }
    for (uint32_t kind = 1; kind < MN_FAULT_COUNT; kind++) {
        if ((r->faults & MN_FAULT_BIT(kind)) == 0) {
            continue;
        }
        if (kind == MN_FAULT_CORRUPT) {
            char what[32];

            (void)snprintf(what, sizeof(what), "corrupted bit %u", r->bit);
            say(&t, what);
        } else if (fate_names[kind] != NULL) {
            say(&t, fate_names[kind]);
        }
    }
    if (r->delay_ns != 0 && !mn_simnet_lost(r)) {
        say_delay(&t, r->delay_ns);
    }
    if (r->at_ns == MN_NEVER) {
        say(&t, "clogged");
    }
    return t.len;
}

bool mn_simnet_lost(const struct mn_sim_record *r)
{
    const uint32_t lost = MN_FAULT_BIT(MN_FAULT_LOSS) | MN_FAULT_BIT(MN_FAULT_BURST) |
                          MN_FAULT_BIT(MN_FAULT_QUEUE) | MN_FAULT_BIT(MN_FAULT_MTU) |
                          MN_FAULT_BIT(MN_FAULT_BLOCKED) | MN_FAULT_BIT(MN_FAULT_DOWN);

    return (r->faults & lost) != 0 || ((r->faults & MN_FAULT_BIT(MN_FAULT_RULE)) != 0 &&
                                       (r->rule == MN_RULE_DROP || r->rule >= MN_RULE_ABORT));
}

/* ---- the ring ------------------------------------------------------------------------------ */

static int slots_init(struct slots *s, uint32_t size, uint32_t n)
{
    uint64_t bytes = (uint64_t)size * n;
    void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (mem == MAP_FAILED) {
        return -ENOMEM;
    }
    *s = (struct slots){.mem = mem, .mem_bytes = bytes, .n = n, .size = size};
    s->users = calloc(n, sizeof(*s->users));
    s->free = calloc(n, sizeof(*s->free));
    return s->users != NULL && s->free != NULL ? 0 : -ENOMEM;
}

static inline uint8_t *slot_at(const struct slots *s, uint32_t i)
{
    return s->mem + (uint64_t)i * s->size;
}

static uint32_t slot_get(struct slots *s)
{
    uint32_t i = s->high;

    if (s->n_free > 0) {
        i = s->free[s->first_free];
        s->first_free = s->first_free + 1 < s->n ? s->first_free + 1 : 0;
        s->n_free--;
    } else {
        s->high++;
    }
    s->users[i] = 1;
    return i;
}

static void slot_put(struct slots *s, uint32_t i)
{
    if (--s->users[i] == 0) {
        uint32_t last = s->first_free + s->n_free++;

        s->free[last < s->n ? last : last - s->n] = i;
    }
}

/* The lines of the slot that comes next, as many as a frame of this length takes. */
static void slot_fetch(const struct slots *s, uint32_t len)
{
    if (s->n_free > 0) {
        const uint8_t *slot = slot_at(s, s->free[s->first_free]);

        for (uint32_t at = 0; at < len; at += LINE_BYTES) {
            __builtin_prefetch(slot + at, 1);
        }
    }
}

static void ring_free(struct record *rec)
{
    for (uint32_t i = 0; i < CLASSES; i++) {
        if (rec->slots[i].mem != NULL) {
            (void)munmap(rec->slots[i].mem, rec->slots[i].mem_bytes);
        }
        free(rec->slots[i].users);
        free(rec->slots[i].free);
    }
    free(rec->ring);
    free(rec);
}

int sim_record_new(struct mn_simnet *net, uint32_t pkts, uint32_t snap)
{
    struct record *rec = calloc(1, sizeof(*rec));
    uint32_t most = net->pool.room;
    int rc = 0;

    if (rec == NULL) {
        return -ENOMEM;
    }
    snap = snap != 0 ? mn_min_u32(snap, most) : most;
    rec->pkts = pkts;
    rec->snap = snap;
    rec->ring = calloc(pkts, sizeof(*rec->ring));
    if (rec->ring == NULL) {
        rc = -ENOMEM;
    }
    for (uint32_t i = 0; rc == 0 && i < CLASSES; i++) {
        const uint32_t sizes[CLASSES] = {SMALL_BYTES, FRAME_BYTES, snap};

        rc = slots_init(&rec->slots[i], (sizes[i] + 63u) & ~63u, pkts);
    }
    if (rc < 0) {
        ring_free(rec);
        return rc;
    }
    net->record = rec;
    return 0;
}

void sim_record_free(struct mn_simnet *net)
{
    if (net->record != NULL) {
        ring_free(net->record);
        net->record = NULL;
    }
}

/* The entry in which a frame went out, if it is still kept and the frame came in unchanged. */
static const struct rec *ring_same(const struct record *rec, const struct mn_sim_record *in,
                                   uint32_t out_seq)
{
    uint64_t seq = (rec->next & ~(uint64_t)UINT32_MAX) | out_seq;
    const struct rec *e;
    uint32_t back;

    if (seq >= rec->next || seq + rec->pkts <= rec->next) {
        return NULL;
    }
    back = (uint32_t)(rec->next - seq);
    e = &rec->ring[rec->at >= back ? rec->at - back : rec->at + rec->pkts - back];
    return e->r.out != 0 && e->r.link == in->link && e->r.dir == in->dir &&
                   e->r.frame_no == in->frame_no && e->r.len == in->len &&
                   (e->r.faults & MN_FAULT_BIT(MN_FAULT_CORRUPT)) == 0 &&
                   rec->slots[e->cls].users[e->slot] < UINT8_MAX
               ? e
               : NULL;
}

/* same: shares its bytes; may be NULL. */
static void ring_add(struct record *rec, struct mn_sim_record *r, const uint8_t *frame,
                     const struct rec *same)
{
    struct rec *e = &rec->ring[rec->at];
    uint32_t cls = 0, slot = 0;

    r->kept = mn_min_u32(r->len, rec->snap);
    if (same != NULL) {
        cls = same->cls;
        slot = same->slot;
        rec->slots[cls].users[slot]++;
    }
    if (rec->next >= rec->pkts) {
        slot_put(&rec->slots[e->cls], e->slot);
    }
    if (same == NULL) {
        while (rec->slots[cls].size < r->kept) {
            cls++;
        }
        slot = slot_get(&rec->slots[cls]);
        memcpy(slot_at(&rec->slots[cls], slot), frame, r->kept);
        slot_fetch(&rec->slots[cls], r->kept);
    }
    r->seq = rec->next++;
    rec->at = rec->at + 1 < rec->pkts ? rec->at + 1 : 0;
    e->r = *r;
    e->cls = cls;
    e->slot = slot;
}

uint64_t mn_simnet_recorded(const struct mn_simnet *net)
{
    return net->record != NULL ? net->record->next : 0;
}

uint64_t mn_simnet_oldest(const struct mn_simnet *net)
{
    const struct record *rec = net->record;

    return rec != NULL && rec->next > rec->pkts ? rec->next - rec->pkts : 0;
}

static const struct rec *ring_find(const struct mn_simnet *net, uint64_t seq)
{
    if (seq < mn_simnet_oldest(net) || seq >= mn_simnet_recorded(net)) {
        return NULL;
    }
    return &net->record->ring[seq % net->record->pkts];
}

static const uint8_t *rec_bytes(const struct record *rec, const struct rec *e)
{
    return slot_at(&rec->slots[e->cls], e->slot);
}

int mn_simnet_record(const struct mn_simnet *net, uint64_t seq, struct mn_sim_record *out,
                     uint8_t *buf, uint32_t size)
{
    const struct rec *e = ring_find(net, seq);

    if (e == NULL) {
        return -ENOENT;
    }
    *out = e->r;
    if (size > 0) {
        memcpy(buf, rec_bytes(net->record, e), mn_min_u32(size, e->r.kept));
    }
    return 0;
}

/* ---- files --------------------------------------------------------------------------------- */

static int file_iface(struct mn_pcapng *file, const struct simnode *node)
{
    struct mn_pcapng_iface iface = {.name = node->name};
    int rc;

    if (node->kind != NODE_SWITCH) {
        memcpy(iface.mac, node->nic.mac, sizeof(iface.mac));
    }
    rc = mn_pcapng_add_iface(file, &iface);
    MN_ASSERT(rc < 0 || (uint32_t)rc == node->number);
    return rc < 0 ? rc : 0;
}

/* Takes fd, also where it fails. */
static int file_open(const struct mn_simnet *net, int fd, struct mn_pcapng **out)
{
    struct mn_pcapng_config cfg = {.fd = fd, .app = "machnet"};
    int rc = mn_pcapng_open(&cfg, out);

    if (rc < 0) {
        (void)close(fd);
    }
    for (uint32_t i = 0; rc == 0 && i < net->n_nodes; i++) {
        rc = file_iface(*out, net->nodes[i]);
        if (rc < 0) {
            (void)mn_pcapng_close(*out);
        }
    }
    return rc;
}

static void file_add(struct mn_pcapng *file, const struct mn_sim_record *r, const uint8_t *frame,
                     uint32_t kept)
{
    char fate[FATE_BYTES];
    struct mn_pcapng_pkt pkt = {
        .iface = r->node,
        .dir = r->out != 0 ? MN_PCAPNG_DIR_OUT : MN_PCAPNG_DIR_IN,
        .t_ns = r->t_ns,
        .cap_len = kept,
        .orig_len = r->len,
        .comment = fate,
        .comment_len = mn_simnet_fate(r, fate, sizeof(fate)),
    };

    (void)mn_pcapng_write(file, &pkt,
                          frame); /* what is not written is counted and told at the end */
}

void sim_record_out(struct mn_simnet *net, struct mn_sim_record *r, struct mn_pkt *pkt)
{
    if (net->record != NULL) {
        sim_set_record(pkt, (uint32_t)net->record->next);
        ring_add(net->record, r, pkt->data, NULL);
    }
    if (net->capture != NULL) {
        file_add(net->capture, r, pkt->data, r->len);
    }
}

void sim_record_in(struct mn_simnet *net, struct mn_sim_record *r, const struct mn_pkt *pkt)
{
    if (net->record != NULL) {
        ring_add(net->record, r, pkt->data, ring_same(net->record, r, sim_get_record(pkt)));
    }
    if (net->capture != NULL) {
        file_add(net->capture, r, pkt->data, r->len);
    }
}

int sim_record_node(struct mn_simnet *net, const struct simnode *node)
{
    return net->capture != NULL ? file_iface(net->capture, node) : 0;
}

int mn_simnet_capture(struct mn_simnet *net, int fd)
{
    int rc, copy;

    if (net->capture != NULL) {
        return -EBUSY;
    }
    /* The caller keeps its own until all is well. */
    copy = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (copy < 0) {
        return -EINVAL;
    }
    rc = file_open(net, copy, &net->capture);
    if (rc < 0) {
        net->capture = NULL;
        return rc;
    }
    (void)close(fd);
    return 0;
}

/* Whether all of it is in the file, which is closed. */
static int file_close(struct mn_pcapng *file)
{
    struct mn_pcapng_stats stats;
    int rc;

    mn_pcapng_get_stats(file, &stats);
    rc = mn_pcapng_close(file);
    return rc < 0 || stats.dropped == 0 ? rc : stats.last_errno != 0 ? -stats.last_errno : -EIO;
}

int mn_simnet_capture_end(struct mn_simnet *net)
{
    struct mn_pcapng *file = net->capture;

    net->capture = NULL;
    return file != NULL ? file_close(file) : 0;
}

int mn_simnet_dump(struct mn_simnet *net, int fd)
{
    struct mn_pcapng *file;
    int rc = fd >= 0 ? file_open(net, fd, &file) : -EINVAL;

    if (rc < 0) {
        return rc;
    }
    for (uint64_t seq = mn_simnet_oldest(net); seq < mn_simnet_recorded(net); seq++) {
        const struct rec *e = ring_find(net, seq);

        file_add(file, &e->r, rec_bytes(net->record, e), e->r.kept);
    }
    return file_close(file);
}
