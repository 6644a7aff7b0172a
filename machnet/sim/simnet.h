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

/* 0, -EINVAL (pool_pkts above 1 Mi, frame_max not 256 to 65549, record_pkts above 1 Mi,
 * record_snap below 128), -ENOMEM. */
int mn_simnet_new(struct mn_simnet **out, const struct mn_simnet_config *cfg);
/* After the close of its stacks, and not from a callback. NULL is fine. */
void mn_simnet_free(struct mn_simnet *net);
/* The group of its stacks; it lives as long as the network. */
struct mn_group *mn_simnet_group(struct mn_simnet *net);
uint64_t mn_simnet_now(const struct mn_simnet *net);

/* Nodes: the number, or -EINVAL (no name or one over 63 bytes, MTU not 68 to frame_max - 14, a
 * group address), -ENOMEM, -EEXIST (name, MAC address), -ENOSPC (a capture on a full disk). mac:
 * NULL or all zero: 02:4d:4e and the number + 1. mtu 0: 1500. A node that is no switch forwards
 * nothing between its links; a switch learns addresses, floods what it does not know, and forwards
 * along a spanning tree of its links (by link number), so that loops are harmless. */
int mn_simnet_host(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6]);
int mn_simnet_switch(struct mn_simnet *net, const char *name);
/* A scripted host: what it receives waits for mn_simnet_take. */
int mn_simnet_raw(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6]);

struct mn_nic *mn_simnet_nic(struct mn_simnet *net, uint32_t node);
/* The stack of a host, opened on its NIC (or on middleware around it) and the network's group;
 * NULL: none any more (crashed). One that is closed takes itself away. The host's clock starts at
 * the network's time, as that of a machine that boots; its rate stays. -EINVAL; -EBUSY (it has
 * one). */
int mn_simnet_bind(struct mn_simnet *net, uint32_t node, struct mn_stack *stack);

/* Link number, or -EINVAL (a node, the same node twice, a shape), -ENOMEM. back: NULL: as there.
 * The directions' names, which their random streams come from, are "a>b" and "b>a", with "#2"
 * behind for the second link between the two, and so on. */
int mn_simnet_link(struct mn_simnet *net, uint32_t a, uint32_t b, const struct mn_shape *there,
                   const struct mn_shape *back);
/* dir: 0, 1, or 2 for both. */
int mn_simnet_shape(struct mn_simnet *net, uint32_t link, uint32_t dir,
                    const struct mn_shape *shape);
int mn_simnet_get_shape(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                        struct mn_shape *shape);

/* NULL, or the name of a direction. */
const char *mn_simnet_dir_name(const struct mn_simnet *net, uint32_t link, uint32_t dir);

/* Faults of hosts. Paused: neither frames nor timers reach it (its receive ring of 256 frames fills
 * up and then drops), as a process that is stopped. */
int mn_simnet_pause(struct mn_simnet *net, uint32_t node, bool paused);
/* The host's clock from now on: runs faster by ppb parts per billion (negative: slower; up to 9e8
 * either way), and jumps forward by jump_ns (up to 2^62). Its engine never sees time go back. */
int mn_simnet_skew(struct mn_simnet *net, uint32_t node, int64_t ppb, uint64_t jump_ns);
/* The host's own time now. */
uint64_t mn_simnet_local(const struct mn_simnet *net, uint32_t node);
/* The network's time at which a host's clock will show local_ns (its timers are in its own time).
 */
uint64_t mn_simnet_when(const struct mn_simnet *net, uint32_t node, uint64_t local_ns);
/* Down (crash): its engine is not polled, what it sends and what reaches it is lost, its link is
 * down; or up again. */
int mn_simnet_down(struct mn_simnet *net, uint32_t node, bool down);

/* Partitions: what `from` has sent is lost (MN_FAULT_BLOCKED) where it enters the last link on its
 * way to `to`, whatever that way is. Calls are counted: it passes again after as many calls with
 * false. 0, -EINVAL (a node, a switch, one that was not parted), -ENOMEM. */
int mn_simnet_part(struct mn_simnet *net, uint32_t from, uint32_t to, bool on);

/* Rules: called for each frame that enters a link, before the shaper. frame may be changed within
 * `room`. */
enum mn_rule_verdict {
    MN_RULE_PASS = 0, /* as if there were no rule; delay_ns is added to the latency */
    MN_RULE_DROP,
    MN_RULE_DUPLICATE, /* passes twice */
    MN_RULE_REPLACED,  /* *len and frame were changed */
    MN_RULE_ABORT,     /* the callback failed: the frame is lost, the step ends with -ECANCELED */
};
struct mn_rule_frame {
    uint8_t *frame;
    uint32_t len;
    uint32_t room;
    uint32_t link, dir;
    uint64_t now_ns;
    uint64_t delay_ns; /* answer */
};
/* It may change shapes, rules, hosts' faults, add links and schedule calls; it may not step the
 * network. What
 * is no verdict counts as MN_RULE_ABORT, as does a length that is out of its bounds. */
typedef int (*mn_rule_fn)(void *ctx, struct mn_rule_frame *frame);
/* One per direction (dir 2: both); NULL: none. */
int mn_simnet_rule(struct mn_simnet *net, uint32_t link, uint32_t dir, mn_rule_fn fn, void *ctx);

/* Scripted hosts. A frame goes out at once: 0, -EINVAL (not a scripted host, no length), -EMSGSIZE
 * (over its MTU), -ENOBUFS (no packet left), -ENETDOWN (it is down, or has no link), -ECANCELED (a
 * rule failed). */
int mn_simnet_send(struct mn_simnet *net, uint32_t node, const uint8_t *frame, uint32_t len);
/* The oldest frame that came in: its length, 0: none, -EMSGSIZE (longer than size, and stays). At
 * most 8192 wait. */
int64_t mn_simnet_take(struct mn_simnet *net, uint32_t node, uint8_t *buf, uint32_t size,
                       uint64_t *t_ns);

/* Calls fn(ctx, arg) at a time (one that is past: now), in order with the other events. It may open
 * and close stacks, but not step the network: what would is -EBUSY, as is the close of a stack from
 * within a call on one of its chans. fn NULL: nothing is called, but
 * the step ends with -EINTR at that time, when everything there is done. The id, which is above 0,
 * or a negative errno. For faults on schedule, and for timers of the caller. */
int64_t mn_simnet_at(struct mn_simnet *net, uint64_t t_ns, void (*fn)(void *ctx, uint64_t arg),
                     void *ctx, uint64_t arg);
/* 0, or -ENOENT: it has been called, or was never there. */
int mn_simnet_cancel(struct mn_simnet *net, int64_t id);

/* When something happens next, MN_NEVER: nothing ever. */
uint64_t mn_simnet_next(struct mn_simnet *net);
/* Nothing is under way: no frame on a link or in a queue, no call that was scheduled, no timer of
 * an engine but housekeeping (keep-alive, TIME-WAIT, ageing of neighbours, limits on waiting). */
struct mn_simnet_idle {
    uint64_t frames; /* on links and in receive queues, but not of hosts that are paused */
    uint64_t calls;  /* mn_simnet_at */
    uint64_t timers; /* of engines: retransmission, probes, delayed acknowledgements, ARP queries */
    int32_t node;    /* the first one that has such a timer, -1: none */
};
/* After a settle. Hosts that are paused count for nothing. */
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
/* 0, -EINVAL (more than 1 Mi), -ENOMEM. */
int mn_simnet_only(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n);
/* The other way round: these happen although they were not drawn (but for mn_simnet_only, if it
 * says otherwise). They replace those of the call before. 0, -EINVAL (more than 1 Mi), -ENOMEM. */
int mn_simnet_force(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n);
/* The faults that happened so far, but jitter, oldest first, from index `from` on. At most
 * 1 Mi are kept; returns how many were written. */
uint64_t mn_simnet_faults(const struct mn_simnet *net, uint64_t from, struct mn_fault_id *out,
                          uint64_t n);

/* The record of the last frames: each as it left a node (dir out, with the fate on its link) and as
 * it reached one (dir in). */
struct mn_sim_record {
    uint64_t t_ns;
    uint64_t seq;   /* counts from 0 over the whole run */
    uint64_t at_ns; /* out: when it will arrive (0: never; MN_NEVER: when the link is unclogged) */
    uint64_t frame_no; /* of the direction */
    uint64_t delay_ns; /* out: what a rule or reordering added */
    uint32_t node;
    int32_t link;    /* -1: none */
    uint32_t dir;    /* direction of the link */
    uint32_t out;    /* 1: left the node; 0: reached it */
    uint32_t faults; /* MN_FAULT_BIT mask */
    uint32_t bit;    /* which one was inverted, with MN_FAULT_CORRUPT */
    uint32_t rule;   /* enum mn_rule_verdict */
    uint32_t len;    /* of the frame */
    uint32_t kept;   /* bytes kept */
};
/* The fate as text, as in the comments of a capture ("lost", "corrupted bit 123"; empty: none):
 * its length. */
uint32_t mn_simnet_fate(const struct mn_sim_record *r, char *buf, uint32_t size);
/* Whether it got lost there. */
bool mn_simnet_lost(const struct mn_sim_record *r);
uint64_t mn_simnet_recorded(const struct mn_simnet *net); /* seq of the next record */
uint64_t mn_simnet_oldest(const struct mn_simnet *net);   /* seq of the oldest that is kept */
/* One record with its bytes: 0, -ENOENT. */
int mn_simnet_record(const struct mn_simnet *net, uint64_t seq, struct mn_sim_record *out,
                     uint8_t *buf, uint32_t size);
/* Writes all from now on to a pcapng file as well (one interface per node, in order; fates as
 * comments): fd is closed by mn_simnet_capture_end, which says whether all was written. 0; -EINVAL,
 * -EBUSY (there is a capture), -ENOMEM: then fd stays the caller's. */
int mn_simnet_capture(struct mn_simnet *net, int fd);
int mn_simnet_capture_end(struct mn_simnet *net);
/* Writes what is kept of the record, in the same form. Closes fd, whatever happens. */
int mn_simnet_dump(struct mn_simnet *net, int fd);

/* Invariants (check.h), checked while the network runs: a violation ends the step with -EPROTO,
 * once; mn_simnet_error and mn_check_text say what. What applications give and take is compared
 * only when the checks are on before the first host has its stack. 0, -ENOMEM. */
int mn_simnet_checks(struct mn_simnet *net, bool on);
/* All tables of all hosts now, not only as often as the cost allows: 0, or -EPROTO. */
int mn_simnet_check_all(struct mn_simnet *net);
/* NULL: they are off. */
struct mn_check *mn_simnet_check(struct mn_simnet *net);

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
/* Why the last step failed (-ELOOP: instant_max; -ETIME: end_ns; -ECANCELED: a rule; -EPROTO:
 * an invariant), as text;
 * empty before the first failure. */
const char *mn_simnet_error(const struct mn_simnet *net);

#endif
