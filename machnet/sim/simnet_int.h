/* SPDX-License-Identifier: MIT */
/* The simulated network from inside: what its files share.
 *
 * simnet.c       nodes, links, the network itself
 * simnet_step.c  time: events, polling, pause, skew, down; the driver of the group
 * simnet_path.c  the way of a frame: NIC, link, switch, scripted host
 * simnet_mac.c   which address is behind which link
 * simnet_rec.c   the record, and captures of it
 * simnet_part.c  pairs of nodes that nothing passes between
 * simnet_check.c invariants
 * simnet_ctl.c   calls on schedule, lists of faults, idleness, counters
 */
#ifndef MN_SIM_SIMNET_INT_H
#define MN_SIM_SIMNET_INT_H

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/host/stack_int.h"

#include "check.h"
#include "pcapng.h"
#include "pktpool.h"
#include "simnet.h"
#include "simq.h"

#define NAME_MAX_BYTES 64u
#define DIR_NAME_BYTES (2 * NAME_MAX_BYTES + 16u)
/* A host that is paused takes no more frames than these. */
#define RX_RING_FRAMES 256u
/* What a scripted host has not taken. */
#define RAW_QUEUE_FRAMES 8192u
/* A host that has work but can't do it (no packet left) is tried again after this. */
#define BLOCKED_RETRY_NS (100 * MN_NS_PER_US)
#define FAULTS_KEPT_MAX  (1u << 20)
/* 146 years: sums of times stay in range. */
#define SIM_TIME_MAX  (UINT64_C(1) << 62)
#define SKEW_PPB_MAX  900000000
#define SKEW_JUMP_MAX (UINT64_C(1) << 62)

/* A packet of the pool while it is in the network: behind struct mn_pkt, in the room that the pool
 * leaves there and in front of the frame. */
struct simpkt {
    struct mn_pkt pkt;
    uint64_t t_ns;     /* arrival */
    uint64_t seq;      /* of the event */
    uint32_t frame_no; /* its lower half */
    uint32_t origin;   /* the node that sent it first */
};
static_assert(sizeof(struct simpkt) <= MN_PKT_META_BYTES + MN_PKT_HEADROOM_BYTES,
              "the frame begins behind it");

static inline struct simpkt *simpkt_of(struct mn_pkt *pkt)
{
    return (struct simpkt *)(void *)pkt;
}

/* The record's entry of a frame on its way (the lower half of its number) is where offsets of
 * unfinished frames would be: there are none here. */
static inline void sim_set_record(struct mn_pkt *pkt, uint32_t seq)
{
    pkt->l4_off = (uint16_t)(seq >> 16);
    pkt->csum_off = (uint16_t)seq;
}

static inline uint32_t sim_get_record(const struct mn_pkt *pkt)
{
    return (uint32_t)pkt->l4_off << 16 | pkt->csum_off;
}

/* Packets linked by mn_pkt.link. */
struct pktlist {
    struct mn_pkt *head, *tail;
    uint32_t n;
};

static inline void pktlist_push(struct pktlist *l, struct mn_pkt *pkt)
{
    pkt->link = NULL;
    if (l->head == NULL) {
        l->head = pkt;
    } else {
        l->tail->link = pkt;
    }
    l->tail = pkt;
    l->n++;
}

static inline struct mn_pkt *pktlist_pop(struct pktlist *l)
{
    struct mn_pkt *pkt = l->head;

    if (pkt != NULL) {
        l->head = pkt->link;
        l->n--;
        pkt->link = NULL;
    }
    return pkt;
}

/* A frame that waits for the end of a clog. */
struct held {
    struct mn_pkt *pkt;
    struct mn_verdict verdict;
    uint64_t delay_ns; /* a rule's */
};

/* One direction of a link. */
struct simdir {
    struct mn_simnet *net;
    uint32_t link, dir;
    uint32_t from, to; /* nodes */
    uint32_t to_port;  /* which port of the latter it ends at */
    struct mn_shaper shaper;
    mn_rule_fn rule;
    void *rule_ctx;
    /* Frames on their way whose arrivals are in order: only the first is in the event queue. One
     * that overtakes is an event of its own. */
    struct pktlist way;
    uint64_t way_last_ns;
    struct mn_simev ev;
    struct held *held; /* in order */
    uint32_t n_held, held_cap;
    uint64_t bytes, delivered;
    char name[DIR_NAME_BYTES];
};

struct simlink {
    uint32_t nodes[2];
    bool forwards; /* part of the spanning tree of switches, or an end is no switch */
    struct simdir dirs[2];
};

/* Where a node sends to: a direction of a link. */
struct simport {
    struct simlink *link;
    struct simdir *out;
};

/* Addresses seen, each with the port it is behind. */
struct mactab {
    struct macent *slots;
    uint32_t mask; /* 0: no table yet */
    uint32_t n;
};

enum node_kind { NODE_HOST = 0, NODE_SWITCH, NODE_RAW };

struct simnode {
    struct mn_nic nic; /* the first member: the operations find the node by it */
    struct mn_simnet *net;
    uint32_t number;
    enum node_kind kind;
    bool paused, down;
    struct mn_stack *stack;
    struct simport *ports;
    uint32_t n_ports;
    uint32_t tree; /* switches: the number of another one in the same tree, in the end its own */
    struct mactab macs;
    struct pktlist rx; /* has arrived and waits for the engine, or for mn_simnet_take */
    /* Hosts to be polled now are on a list, in the order in which they were touched. */
    bool listed;
    struct simnode *ready_next;
    struct mn_simev timer;
    uint64_t timer_ns;
    /* The clock: local = local_base + (now - base) * (1 + ppb / 1e9). */
    bool skewed;
    int64_t ppb;
    uint64_t base_ns, local_base_ns;
    char name[NAME_MAX_BYTES];
};

struct simcall {
    struct mn_simev ev;
    void (*fn)(void *ctx, uint64_t arg);
    void *ctx;
    uint64_t arg;
    uint32_t slot;
    uint32_t gen;
    bool live;
};

struct record;  /* simnet_rec.c */
struct simpart; /* simnet_part.c */

struct mn_simnet {
    struct mn_group *group;
    struct mn_pktpool pool;
    struct mn_simq q;
    struct simnode **nodes;
    struct simlink **links;
    uint32_t n_nodes, n_links, nodes_cap, links_cap;
    struct simnode *ready_head, *ready_tail;
    uint64_t seed, instant_max, end_ns;
    uint64_t instant_ns, instant; /* events and polls at that time */
    bool stepping;
    int aborted;        /* a rule failed: the step ends with this */
    uint64_t in_flight; /* frames on links, held ones counted */
    uint64_t n_calls;
    struct simcall **calls;
    uint32_t calls_n, calls_cap, calls_free_n;
    uint32_t *calls_free;
    struct mn_fault_id *only;
    uint64_t n_only;
    bool only_set;
    struct mn_fault_id *forced;
    uint64_t n_forced;
    struct simpart *parts; /* in order */
    uint32_t n_parts, parts_cap;
    struct mn_fault_id *faults;
    uint64_t n_faults, faults_cap;
    struct record *record; /* NULL: none */
    struct mn_pcapng *capture;
    struct mn_simnet_stats stats;
    struct mn_check *check; /* NULL: no checks */
    char error[704];
};

static inline uint64_t sim_now(const struct mn_simnet *net)
{
    return atomic_load_explicit(&net->group->now_ns, memory_order_relaxed);
}

static inline bool sim_recording(const struct mn_simnet *net)
{
    return net->record != NULL || net->capture != NULL;
}

static inline struct simnode *sim_node(const struct mn_simnet *net, uint32_t node)
{
    return node < net->n_nodes ? net->nodes[node] : NULL;
}

static inline void sim_free_pkt(struct mn_simnet *net, struct mn_pkt *pkt)
{
    mn_pktpool_put_frame(&net->pool, pkt);
}

/* A network's directions from..to of (dir 0, 1, or 2 for both), or -EINVAL. */
int sim_dirs(const struct mn_simnet *net, uint32_t link, uint32_t dir, struct simdir *out[2]);

/* simnet_step.c */
extern const struct mn_group_driver mn_simnet_driver;
uint64_t sim_local(const struct simnode *node, uint64_t now_ns);
/* To be polled at this moment, or once it is no longer paused. */
void sim_touch(struct simnode *node);
/* Takes a host's engine away from the network. */
void sim_unbind(struct simnode *node);
void sim_error(struct mn_simnet *net, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* simnet_path.c */
extern const struct mn_nic_ops mn_simnet_nic_ops;
/* A frame arrives at the end of a direction; it was queued there. */
void sim_arrive(struct simdir *dir, struct mn_pkt *pkt);
/* What was held in a clog goes on. */
void sim_release(struct simdir *dir);
void sim_drop_list(struct mn_simnet *net, struct pktlist *list);
void sim_dir_drain(struct simdir *dir);

/* simnet_mac.c */
void mactab_learn(struct mactab *t, const uint8_t mac[6], uint32_t port);
/* The port, or UINT32_MAX. */
uint32_t mactab_find(const struct mactab *t, const uint8_t mac[6]);
void mactab_fini(struct mactab *t);

/* simnet_rec.c */
int sim_record_new(struct mn_simnet *net, uint32_t pkts, uint32_t snap);
void sim_record_free(struct mn_simnet *net);
/* Of a frame as it leaves a node, and as it reaches one; r->seq and kept are filled in. */
void sim_record_out(struct mn_simnet *net, struct mn_sim_record *r, struct mn_pkt *pkt);
void sim_record_in(struct mn_simnet *net, struct mn_sim_record *r, const struct mn_pkt *pkt);
/* A node more: its interface in the capture. */
int sim_record_node(struct mn_simnet *net, const struct simnode *node);

/* simnet_part.c */
struct simpart {
    uint32_t from, to;
    uint32_t count; /* how often it was parted */
};
/* Whether nothing passes from one node to another. */
bool sim_parted(const struct mn_simnet *net, uint32_t from, uint32_t to);

/* simnet_check.c: a frame leaves a host's engine; a pass of it is over. */
void sim_check_frame(struct simnode *node, const struct mn_pkt *pkt);
void sim_check_pass(struct simnode *node);
/* A frame that a rule has made, or a scripted host. */
void sim_check_foreign(struct mn_simnet *net, const struct mn_pkt *pkt);

/* simnet_ctl.c */
void sim_call_run(struct mn_simnet *net, struct simcall *call);
void sim_calls_free(struct mn_simnet *net);
void sim_permit_apply(struct simdir *dir);
void sim_fault_note(struct simdir *dir, const struct mn_verdict *v);

#endif
