/* SPDX-License-Identifier: MIT */
/*
 * The hot loops of `machnet ping` and `machnet pktgen`: numbered packets over a NIC, without an
 * engine. A probe asks for the next hop's address (ARP), sends echo requests (ICMP) or UDP packets
 * at the times that its configuration names, and matches what comes back; a bouncer sends UDP
 * packets back to where they came from. Both answer ARP and echo requests, so that they can be
 * found.
 *
 * As with msg_gen, each run call goes on until a time that the caller names, and nothing here
 * prints.
 */
#ifndef MN_CLI_PROBE_H
#define MN_CLI_PROBE_H

#include "machnet/cli/msg_app.h"
#include "machnet/stack/core/nic.h"

/* Bytes in front of a UDP packet's pattern: who sent it, and its number. */
#define MN_PROBE_MARK_BYTES 16u
/* Packets on their way whose time is known; what is older counts as lost. */
#define MN_PROBE_SLOTS 65536u
/* Who wants to know the time before each poll of the NIC: middleware. */
#define MN_PROBE_WATCHERS_MAX 4u

enum mn_probe_mode {
    MN_PROBE_ICMP = 0,   /* echo requests */
    MN_PROBE_UDP = 1,    /* UDP packets to a bouncer */
    MN_PROBE_BOUNCE = 2, /* sends others' UDP packets back */
};

struct mn_probe_config {
    struct mn_nic *nic; /* stays the caller's */
    void (*watch[MN_PROBE_WATCHERS_MAX])(void *ctx, uint64_t now_ns);
    void *watch_ctx[MN_PROBE_WATCHERS_MAX];
    uint32_t mode; /* enum mn_probe_mode */
    /* Host byte order; the next hop is the target itself, or the router to it. */
    uint32_t ip;
    uint32_t target_ip;
    uint32_t next_hop_ip;
    uint8_t next_hop_mac[6]; /* all zero: ask */
    uint16_t local_port;     /* UDP; a bouncer serves it */
    uint16_t remote_port;
    uint16_t echo_id;   /* ICMP */
    uint64_t mark;      /* random: tells our packets from others' */
    uint32_t frame_len; /* bytes, the Ethernet header included */
    uint32_t burst;     /* packets to send, and with UDP to receive, at once: at most 32 */
    /* Packet i is due i * period_ns / period_packets after the first; period_ns 0: at once. */
    uint64_t period_ns;
    uint64_t period_packets;
    uint32_t window; /* packets on their way at most; 0: any number */
    /* Round trips count from when the packet was due, not from when it was sent: what the sender
     * was late is part of them. */
    bool from_due;
    bool log;            /* note each answer and each loss for mn_probe_log */
    uint64_t count;      /* packets to send; 0: no limit */
    uint64_t timeout_ns; /* a packet that is not answered by then is lost */
    uint64_t arp_timeout_ns;
    uint64_t spin_ns; /* how long to look for work before sleeping; UINT64_MAX never sleeps */
};

struct mn_probe_counts {
    uint64_t answered;    /* in time */
    uint64_t lost;        /* not answered in time */
    uint64_t late;        /* answered after that */
    uint64_t duplicates;  /* answered once more */
    uint64_t unreachable; /* ICMP errors about our packets */
    uint64_t bounced;
    uint64_t arp_requests; /* sent */
    uint64_t arp_replies;  /* sent */
    uint64_t echo_replies; /* sent */
    uint64_t other;        /* frames that were nothing of this */
    uint64_t bad;          /* frames to us with a wrong length or checksum */
    uint64_t refused;      /* packets that the NIC took at a later try, or not */
    /* What packets cost, in ticks of the processor's counter (nanoseconds where there is none): to
     * make and send one; to receive one, look at it and give it back, or send it back. Of bursts
     * with packets only. */
    uint64_t cost_tx_ticks;
    uint64_t cost_tx_bursts;
    uint64_t cost_tx_packets;
    uint64_t cost_rx_ticks;
    uint64_t cost_rx_bursts;
    uint64_t cost_rx_packets;
    uint64_t cost_run_ticks; /* all of the run, and the same in nanoseconds */
    uint64_t cost_run_ns;
};

enum mn_probe_event_kind {
    MN_PROBE_REPLY = 0,
    MN_PROBE_DUPLICATE = 1,
    MN_PROBE_LOST = 2,
    MN_PROBE_LATE = 3,
    MN_PROBE_ERROR = 4,
};

struct mn_probe_event {
    uint64_t seq; /* from 0 */
    uint64_t rtt_ns;
    uint64_t at_ns;
    uint32_t from_ip; /* host byte order */
    uint32_t len;     /* bytes of the ICMP message or UDP payload */
    uint8_t kind;     /* enum mn_probe_event_kind */
    uint8_t ttl;
    uint8_t icmp_type; /* of an error */
    uint8_t icmp_code;
};

struct mn_probe;

/* NULL when memory is short or the configuration is out of range. */
struct mn_probe *mn_probe_new(const struct mn_probe_config *config, struct mn_msg_stats *stats);
void mn_probe_free(struct mn_probe *probe);
/* Sends and receives until `until_ns`, a signal, or *stop, or until there are events to be read
 * before more can be noted: 0 then; 1 when every packet that had to be sent is answered or lost;
 * -EHOSTUNREACH when the next hop does not answer ARP. */
int mn_probe_run(struct mn_probe *probe, uint64_t until_ns, const volatile int *stop);
/* From now on only waits for the answers to what is sent. */
void mn_probe_drain(struct mn_probe *probe);
/* Packets that are neither answered nor lost. */
uint32_t mn_probe_in_flight(const struct mn_probe *probe);
struct mn_probe_counts mn_probe_get_counts(const struct mn_probe *probe);
/* The next hop's address: false while it is not known. */
bool mn_probe_next_hop(const struct mn_probe *probe, uint8_t mac[6]);
/* Takes up to n events, the oldest first; returns how many. */
uint32_t mn_probe_log(struct mn_probe *probe, struct mn_probe_event *events, uint32_t n);

#endif
