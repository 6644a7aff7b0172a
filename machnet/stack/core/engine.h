/* SPDX-License-Identifier: MIT */
/*
 * The engine as its host sees it. The host brings memory, time, randomness and wake-ups; the engine
 * never asks for them.
 *
 *     mn_engine_open(&e, mem, mn_engine_bytes(&cfg), &cfg, nic, &host, now)
 *     loop: mn_engine_poll(e, now); sleep until mn_engine_deadline(e) or until the NIC or a channel
 * has something
 *
 * One thread calls into an engine. Times are nanoseconds of any monotonic clock, the same for all
 * calls.
 */
#ifndef MN_ENGINE_H
#define MN_ENGINE_H

#include "base.h"
#include "channel.h"
#include "nic.h"
#include "stats.h"

#define MN_NEVER UINT64_MAX

/* Every limit and default of the engine. mn_config_defaults fills it; 0 is not a default except
 * where it says so. */
struct mn_config {
    uint32_t ip;        /* our address, host byte order */
    uint32_t prefix;    /* 0..32 */
    uint32_t gateway;   /* 0: none */
    uint8_t secret[16]; /* key of the hash functions, ISNs and ports; from a good source, or from
                           the test's seed */
    uint32_t flows_max; /* connections, 1..1<<20 */
    uint32_t listeners_max;   /* 1..65535 */
    uint32_t neighbors_max;   /* 8..65536 */
    uint32_t lanes_max;       /* channels at once, 1..1024 */
    uint32_t ooo_blocks_max;  /* blocks of out-of-order data, 2 KiB each */
    uint32_t ooo_ranges_max;  /* per connection: separate out-of-order ranges, 4..1024 */
    uint32_t sack_ranges_max; /* per connection: ranges of the send scoreboard, 4..1024 */
    uint32_t loop_slots;      /* frames from the engine to itself, power of two */
    uint32_t poll_burst;      /* frames received per pass, 1..256 */
    uint32_t poll_descs;      /* descriptors taken per channel and pass */

    uint32_t mss_min_bytes;  /* floor of the peer's MSS option (CVE-2019-11479 class) */
    uint32_t rcv_buf_bytes;  /* receive window limit of a connection */
    uint32_t initial_window; /* segments, RFC 6928 */
    uint32_t rto_initial_us, rto_min_us, rto_max_us;
    uint32_t delack_us;    /* 0: acknowledge at once */
    uint32_t msl_ms;       /* TIME-WAIT is twice this */
    uint32_t fin_wait2_ms; /* how long a half-closed connection that no application owns waits for
                              the peer */
    uint32_t r1_retries;   /* RFC 9293 3.8.3: advice to IP after that many retransmissions */
    uint32_t user_timeout_ms; /* R2 for data */
    uint32_t syn_timeout_ms;  /* R2 for SYN */
    uint32_t syn_backlog_max; /* half-open connections per listener */
    uint32_t app_exit_linger_ms;
    uint32_t eof_linger_ms; /* how long a framed flow stays open for answers after the peer's FIN */
    uint32_t keepalive_idle_s, keepalive_interval_s, keepalive_count;
    uint32_t large_progress_ms; /* a message over 64 KiB that makes no progress for that long loses
                                   its turn and its flow */
    uint32_t arp_reachable_ms, arp_retry_ms, arp_retries, arp_queue_pkts;
    uint32_t rst_per_s, icmp_per_s,
        challenge_per_s; /* rate limits; challenge ACKs are per connection */
    /* The message protocol. Its connections count among flows_max as well. */
    uint32_t mnp_flows_max; /* 1..flows_max limit of 1<<20 */
    uint32_t mnp_rto_initial_us, mnp_rto_min_us, mnp_rto_max_us;
    uint32_t mnp_delack_us;      /* to our own kind; 0: acknowledge at once */
    uint32_t mnp_window_packets; /* in flight per flow, and promised to a peer: 2..256 */
    uint32_t mnp_user_timeout_ms;
    uint32_t mnp_msl_ms;
    bool mnp_extended; /* offer extended mode, and accept it */
    uint8_t ttl;
    uint8_t dscp;
    bool timestamps, sack, wscale;
    bool nagle_framed, nagle_stream;
    bool isn_option; /* tests: applications may set initial sequence numbers (MN_OPT_ISN) */
};

struct mn_host {
    void *ctx;
    /* The application of lane `lane` sleeps and has something to look at. At most once per lane and
     * pass. May be NULL. */
    void (*wake)(void *ctx, uint32_t lane);
};

/* Several engines with one NIC and one address (handoff.h). */
#define MN_ENGINES_MAX 16u
/* Entries of the table of hints that the engines of an address share. */
#define MN_OWNERS (1u << 16)

/* A frame on its way to another engine. */
struct mn_handed {
    const struct mn_pkt *pkt; /* to be copied; stays the caller's */
    uint16_t asked;           /* for mn_pkt.asked of the copy */
    bool looped;              /* the copy gets MN_PKT_LOOPED beside MN_PKT_HANDED */
    bool spare;               /* less important than segments: may use half of the way's room */
};

struct mn_share {
    uint32_t index, n; /* this engine is number index of n, at most MN_ENGINES_MAX */
    /* Gives a copy of a frame to engine `to`, which receives it from its NIC; false: no room. */
    bool (*give)(void *ctx, uint32_t to, const struct mn_handed *frame);
    void *ctx;
    _Atomic uint32_t *owners; /* MN_OWNERS of them, zeroed, the same for all */
};

struct mn_engine;

void mn_config_defaults(struct mn_config *cfg);
/* NULL when cfg can be used, else the name of the field that is out of its range. */
const char *mn_config_check(const struct mn_config *cfg);
uint64_t mn_engine_bytes(const struct mn_config *cfg);
/* mem: 64-aligned, zeroed, at least mn_engine_bytes(cfg). 0, -EINVAL (config), -ENOMEM (mem too
 * small). The NIC stays the caller's. */
int mn_engine_open(struct mn_engine **out, void *mem, uint64_t mem_bytes,
                   const struct mn_config *cfg, struct mn_nic *nic, const struct mn_host *host,
                   uint64_t now_ns);
/* The engine is one of several, which need the same secret. Before its first pass. 0, -EINVAL. */
int mn_engine_join(struct mn_engine *e, const struct mn_share *share);
/* Gives all packets back to the NIC; connections vanish without a word (abort or close them first).
 */
void mn_engine_close(struct mn_engine *e);

/* One bounded pass. Returns the number of things done: frames, descriptors, timers. now_ns must not
 * go back (if it does, it counts as standing still). */
uint32_t mn_engine_poll(struct mn_engine *e, uint64_t now_ns);
/* When the engine wants to be polled next: the last now_ns while work remains, MN_NEVER when it
 * waits for frames or channels only. */
uint64_t mn_engine_deadline(const struct mn_engine *e);
/* Tells all applications whether they must kick the engine (it goes to sleep). With true: set,
 * fence, and then true is returned if there is nothing to do, so that sleeping is safe (the caller
 * looks at the NIC itself). */
bool mn_engine_prepare_sleep(struct mn_engine *e);
void mn_engine_cancel_sleep(struct mn_engine *e);

/* Channels. region: formatted (mn_chan_format). priv: zeroed memory of mn_lane_priv_bytes. Returns
 * the lane number or a negative errno. */
uint64_t mn_lane_priv_bytes(const struct mn_chan_geometry *geo);
int mn_engine_attach(struct mn_engine *e, void *region, uint64_t region_bytes, void *priv,
                     uint64_t priv_bytes);
/* The same for lane `index` of a region of several, each attached to an engine of its own. */
int mn_engine_attach_lane(struct mn_engine *e, void *region, uint64_t region_bytes, uint32_t index,
                          void *priv, uint64_t priv_bytes);
/* The application is gone: what it published is still sent, its flows linger, then close. */
int mn_engine_detach(struct mn_engine *e, uint32_t lane, uint32_t linger_ms);
/* The lane's application is another process, mostly on another core: what it gets is put where that
 * one finds it. */
void mn_engine_lane_set_far(struct mn_engine *e, uint32_t lane);
/* Why the lane is dead, as a positive errno: its application broke the rules. 0 while it lives;
 * -ENOENT. */
int mn_engine_lane_dead(const struct mn_engine *e, uint32_t lane);
/* 0: the lane's memory is still needed; 1: free, the memory may go; -ENOENT. */
int mn_engine_lane_free(struct mn_engine *e, uint32_t lane);

/* Neighbours: a static entry needs no ARP and does not age. */
int mn_engine_neighbor(struct mn_engine *e, uint32_t ip, const uint8_t mac[6]);

const struct mn_stats *mn_engine_stats(const struct mn_engine *e);

/* What the pools hold: for leak checks and for `ss`. */
struct mn_usage {
    uint32_t tcbs, half_open, time_wait, listeners, neighbors, ooo_blocks, ooo_ranges, sack_ranges,
        lanes, loop_frames, timers, mnp_flows;
};
void mn_engine_usage(const struct mn_engine *e, struct mn_usage *out);

/* Connections and neighbours with a timer that stands for work under way: retransmission, probe of
 * a closed window, delayed acknowledgement, ARP question. Keep-alive, TIME-WAIT, ageing and limits
 * on waiting are housekeeping. */
uint32_t mn_engine_pending(const struct mn_engine *e);

struct mn_sock_info {
    uint32_t local_ip, remote_ip;
    uint16_t local_port, remote_port;
    uint8_t state; /* enum mn_tcp_state */
    uint8_t proto; /* enum mn_proto */
    uint16_t mss;
    uint32_t lane;
    uint32_t flow;
    uint32_t snd_una, snd_nxt, rcv_nxt, snd_wnd, rcv_wnd, cwnd, ssthresh, sndq_bytes, rcvq_bytes;
    uint32_t srtt_us, rttvar_us, rto_us;
    uint32_t retransmits, backoff;
    uint64_t timer_ns; /* next timer, MN_NEVER if none */
    uint8_t timer_kind;
    uint8_t pad[7];
};
/* Fills up to n entries from connection index *cursor on (0 first), listeners last; returns how
 * many. */
uint32_t mn_engine_sockets(const struct mn_engine *e, uint32_t *cursor, struct mn_sock_info *out,
                           uint32_t n);

/* RFC 9293 3.3.2, in the order of the states' life. */
enum mn_tcp_state {
    MN_TCP_CLOSED = 0,
    MN_TCP_LISTEN,
    MN_TCP_SYN_SENT,
    MN_TCP_SYN_RECEIVED,
    MN_TCP_ESTABLISHED,
    MN_TCP_FIN_WAIT_1,
    MN_TCP_FIN_WAIT_2,
    MN_TCP_CLOSE_WAIT,
    MN_TCP_CLOSING,
    MN_TCP_LAST_ACK,
    MN_TCP_TIME_WAIT,
};

#endif
