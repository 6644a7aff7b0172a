/* SPDX-License-Identifier: MIT */
/*
 * A network in virtual time: hosts (each a real engine behind a NIC of this network), links,
 * switches, scripted hosts, and one queue of events in nanoseconds, ordered by (time, sequence).
 * Time jumps from event to event.
 *
 *     mn_simnet_new(&net, &cfg)
 *     mn_simnet_host(net, "a", mtu, &a); ...; mn_simnet_link(net, a, b, &shape_ab, &shape_ba, &l)
 *     mn_stack_open(&stack, &config, mn_simnet_nic(net, a), mn_simnet_group(net))
 *     mn_simnet_bind(net, a, stack)
 *
 * The stacks are stepped by their group (host.h), which asks the network what to poll: only hosts
 * that a frame, a timer or their application has touched, so that the cost of a step does not grow
 * with the number of hosts. One thread. Nothing here depends on addresses of memory, on the wall
 * clock or on hash order: the same seed and calls give the same frames.
 *
 * Nodes are numbered from 0 in the order they are made, links too. Direction 0 of a link is from
 * its first node to its second.
 */
#ifndef MN_SIM_SIMNET_H
#define MN_SIM_SIMNET_H

#include "machnet/stack/core/nic.h"

#include "shaper.h"

struct mn_group;
struct mn_stack;
struct mn_simnet;

struct mn_simnet_config {
    uint64_t seed;
    uint32_t pool_pkts;   /* frames in flight and in queues at once, all together; 0: 65536 */
    uint32_t frame_max;   /* bytes, with the Ethernet header; 0: 9014 */
    uint32_t record_pkts; /* the last frames that are kept for mn_simnet_record; 0: none */
    uint32_t record_snap; /* bytes kept of each, at least 128; 0: all */
    uint64_t instant_max; /* events and polls at one moment of time; 0: 10,000,000 */
    uint64_t end_ns;      /* time that can't be passed; 0: none */
};

/* 0, -EINVAL, -ENOMEM. */
int mn_simnet_new(struct mn_simnet **out, const struct mn_simnet_config *cfg);
/* After the close of its stacks. */
void mn_simnet_free(struct mn_simnet *net);
/* The group of its stacks; it lives as long as the network. */
struct mn_group *mn_simnet_group(struct mn_simnet *net);
uint64_t mn_simnet_now(const struct mn_simnet *net);

/* Nodes: the number, or -EINVAL, -ENOMEM, -EEXIST (name, MAC address). mac: all zero: 02:4d:4e and
 * the number + 1. A node that is no switch forwards nothing between its links; a switch learns
 * addresses, floods what it does not know, and forwards along a spanning tree of its links (by
 * link number), so that loops are harmless. */
int mn_simnet_host(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6]);
int mn_simnet_switch(struct mn_simnet *net, const char *name);
/* A scripted host: what it receives waits for mn_simnet_take. */
int mn_simnet_raw(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6]);

struct mn_nic *mn_simnet_nic(struct mn_simnet *net, uint32_t node);
/* The stack of a host, opened on its NIC and the network's group; NULL: none any more (crashed). */
int mn_simnet_bind(struct mn_simnet *net, uint32_t node, struct mn_stack *stack);

/* Link number or a negative errno. back: NULL: as there. */
int mn_simnet_link(struct mn_simnet *net, uint32_t a, uint32_t b, const struct mn_shape *there,
                   const struct mn_shape *back);
/* dir: 0, 1, or 2 for both. */
int mn_simnet_shape(struct mn_simnet *net, uint32_t link, uint32_t dir,
                    const struct mn_shape *shape);
int mn_simnet_get_shape(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                        struct mn_shape *shape);

/* Faults of hosts. Paused: neither frames nor timers reach it (its receive ring of 256 frames fills
 * up and then drops), as a process that is stopped. */
int mn_simnet_pause(struct mn_simnet *net, uint32_t node, bool paused);
/* The host's clock from now on: runs faster by ppb parts per billion (negative: slower), and jumps
 * forward by jump_ns. Its engine never sees time go back. */
int mn_simnet_skew(struct mn_simnet *net, uint32_t node, int64_t ppb, uint64_t jump_ns);
/* The host's own time now. */
uint64_t mn_simnet_local(const struct mn_simnet *net, uint32_t node);
/* Frames on their way to a node are lost from now on, its link is down (crash); or up again. */
int mn_simnet_down(struct mn_simnet *net, uint32_t node, bool down);

/* Rules: called for each frame that enters a link, before the shaper. frame may be changed within
 * `room`. */
enum mn_rule_verdict {
    MN_RULE_PASS = 0, /* as if there were no rule; delay_ns is added to the latency */
    MN_RULE_DROP,
    MN_RULE_DUPLICATE, /* passes twice */
    MN_RULE_REPLACED,  /* *len and frame were changed */
    MN_RULE_ABORT,     /* the callback failed: the step ends with -ECANCELED */
};
struct mn_rule_frame {
    uint8_t *frame;
    uint32_t len;
    uint32_t room;
    uint32_t link, dir;
    uint64_t now_ns;
    uint64_t delay_ns; /* answer */
};
typedef int (*mn_rule_fn)(void *ctx, struct mn_rule_frame *frame);
/* One per direction (dir 2: both); NULL: none. */
int mn_simnet_rule(struct mn_simnet *net, uint32_t link, uint32_t dir, mn_rule_fn fn, void *ctx);

/* Scripted hosts. */
int mn_simnet_send(struct mn_simnet *net, uint32_t node, const uint8_t *frame, uint32_t len);
/* The oldest frame that came in: its length, 0: none, -EMSGSIZE (longer than size, and stays). */
int64_t mn_simnet_take(struct mn_simnet *net, uint32_t node, uint8_t *buf, uint32_t size,
                       uint64_t *t_ns);

/* Calls fn(ctx) at a time, in order with the other events; it may not step the network. The id, or
 * a negative errno. For faults on schedule, and for Python's timers. */
int64_t mn_simnet_at(struct mn_simnet *net, uint64_t t_ns, void (*fn)(void *ctx, uint64_t arg),
                     void *ctx, uint64_t arg);
int mn_simnet_cancel(struct mn_simnet *net, int64_t id);

/* When something happens next, MN_NEVER: nothing ever. */
uint64_t mn_simnet_next(struct mn_simnet *net);
/* Nothing is under way: no frame on a link or in a queue, no call that was scheduled, no timer of
 * an engine but housekeeping (keep-alive, TIME-WAIT, ageing of neighbours, limits on waiting). */
struct mn_simnet_idle {
    uint64_t frames; /* on links and in receive queues */
    uint64_t calls;  /* mn_simnet_at */
    uint64_t timers; /* of engines: retransmission, probes, delayed acknowledgements, ARP queries */
    int32_t node;    /* the first one that has such a timer, -1: none */
};
bool mn_simnet_is_idle(struct mn_simnet *net, struct mn_simnet_idle *out);

/* Replays: of the faults that are drawn (loss, burst, reorder, duplicate, corrupt, jitter) only
 * those listed happen; the draws are made all the same. n 0 with a list that is not NULL: none.
 * NULL: all again. */
struct mn_fault_id {
    uint32_t link, dir;
    uint32_t kind; /* enum mn_fault */
    uint32_t pad;
    uint64_t frame_no; /* on that direction, from 0 */
};
int mn_simnet_only(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n);
/* The drawn faults that happened so far, but jitter, oldest first, from index `from` on. At most
 * 1 Mi are kept; returns how many were written. */
uint64_t mn_simnet_faults(const struct mn_simnet *net, uint64_t from, struct mn_fault_id *out,
                          uint64_t n);

/* The record of the last frames: each as it left a node (dir out, with the fate on its link) and as
 * it reached one (dir in). */
struct mn_sim_record {
    uint64_t t_ns;
    uint64_t seq;      /* counts from 0 over the whole run */
    uint64_t at_ns;    /* out: when it will arrive (0: never) */
    uint64_t frame_no; /* of the direction */
    uint32_t node;
    int32_t link;    /* -1: none */
    uint32_t dir;    /* direction of the link */
    uint32_t out;    /* 1: left the node; 0: reached it */
    uint32_t faults; /* MN_FAULT_BIT mask */
    uint32_t len;    /* of the frame */
    uint32_t kept;   /* bytes kept */
};
uint64_t mn_simnet_recorded(const struct mn_simnet *net); /* seq of the next record */
uint64_t mn_simnet_oldest(const struct mn_simnet *net);   /* seq of the oldest that is kept */
/* One record with its bytes: 0, -ENOENT. */
int mn_simnet_record(const struct mn_simnet *net, uint64_t seq, struct mn_sim_record *out,
                     uint8_t *buf, uint32_t size);
/* Writes all from now on to a pcapng file as well (one interface per node, in order; fates as
 * comments): fd is closed by mn_simnet_capture_end, which says whether all was written. */
int mn_simnet_capture(struct mn_simnet *net, int fd);
int mn_simnet_capture_end(struct mn_simnet *net);
/* Writes what is kept of the record, in the same form. Closes fd. */
int mn_simnet_dump(struct mn_simnet *net, int fd);

struct mn_simnet_stats {
    uint64_t events;    /* taken from the queue */
    uint64_t polls;     /* of engines */
    uint64_t frames;    /* entered a link */
    uint64_t delivered; /* reached a node */
    uint64_t dropped;
    uint64_t pool_live; /* packets out now */
    uint64_t queued;    /* events waiting */
};
void mn_simnet_get_stats(const struct mn_simnet *net, struct mn_simnet_stats *out);
struct mn_link_stats {
    uint64_t frames, bytes, delivered;
    uint64_t faults[MN_FAULT_COUNT];
};
int mn_simnet_link_stats(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                         struct mn_link_stats *out);
/* Why the last step failed (-ELOOP: instant_max; -ETIME: end_ns; -ECANCELED: a rule), as text. */
const char *mn_simnet_error(const struct mn_simnet *net);

#endif
