/* SPDX-License-Identifier: MIT */
/* Inside a probe: probe.c decides when, probe_frame.c knows the frames. */
#ifndef MN_CLI_PROBE_INT_H
#define MN_CLI_PROBE_INT_H

#include "machnet/cli/probe.h"

#define PROBE_EVENTS 65536u
#define PROBE_BURST  32u

enum probe_state { PROBE_UNUSED = 0, PROBE_WAITING, PROBE_ANSWERED, PROBE_GONE };

struct probe_slot {
    uint64_t seq; /* UINT64_MAX: of none yet */
    uint64_t sent_ns;
    uint32_t state; /* enum probe_state */
    uint32_t pad;
};

struct mn_probe {
    struct mn_probe_config cfg;
    struct mn_msg_stats *stats;
    struct mn_probe_counts counts;
    uint8_t *payload;     /* of each packet: the mark, the number, the pattern */
    uint32_t payload_len; /* behind the ICMP or UDP header */
    bool resolved;
    bool draining;
    bool started;
    uint8_t next_hop_mac[6];
    uint64_t arp_began_ns; /* 0: not yet */
    uint64_t arp_next_ns;
    uint64_t start_ns;  /* when packet 0 was due */
    uint64_t next_seq;  /* of the next packet to send */
    uint64_t oldest;    /* no packet before it is waiting */
    uint32_t in_flight; /* packets that are waiting */
    uint32_t events_head;
    uint32_t events_tail;
    struct probe_slot slots[MN_PROBE_SLOTS];
    struct mn_probe_event events[PROBE_EVENTS];
};

/* A packet with the number, ready to be sent; NULL when the NIC has none. */
struct mn_pkt *mn_probe_build(struct mn_probe *probe, uint64_t seq);
void mn_probe_ask_arp(struct mn_probe *probe);
/* Looks at a received frame: true when it is to be sent back as it now is. */
bool mn_probe_take(struct mn_probe *probe, struct mn_pkt *pkt, uint64_t now_ns);
/* The answer to packet `seq`, which is one that was sent. */
void mn_probe_answered(struct mn_probe *probe, const struct mn_probe_event *reply, bool right);
void mn_probe_note(struct mn_probe *probe, const struct mn_probe_event *event);

static inline uint64_t probe_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return mn_msg_now_ns();
#endif
}

static inline struct probe_slot *mn_probe_slot(struct mn_probe *probe, uint64_t seq)
{
    return &probe->slots[seq % MN_PROBE_SLOTS];
}

#endif
