/* SPDX-License-Identifier: MIT */
/* One TCP connection, and the calls between the files of the TCP and with the user of its byte
 * stream. */
#ifndef MN_TCB_H
#define MN_TCB_H

#include "cc.h"
#include "engine.h"
#include "timer.h"
#include "wire/wire.h"

#define MN_NIL         0xffffffffu /* no index */
#define MN_MSS_DEFAULT 536u        /* RFC 9293, MUST-15 */
#define MN_DUPTHRESH   3u

struct mn_tcb;

enum mn_tcp_event {
    MN_TCP_EV_CONNECTED, /* active open is through */
    MN_TCP_EV_EOF,       /* the peer's FIN, behind all its data */
    MN_TCP_EV_CLOSED,    /* the connection is gone for its user: err 0 after an orderly end, else a
                            positive errno */
    MN_TCP_EV_SOFT,      /* err may explain what goes wrong; the connection lives */
    MN_TCP_EV_URGENT,    /* urgent data were announced or moved on */
    MN_TCP_EV_TIMER,     /* the timer that the user set with mn_tcp_user_timer */
};

/*
 * Who uses a byte stream: a channel's flow, framed or not. The TCP keeps sequence numbers only;
 * bytes to send stay with the user until they are acknowledged, received ones are handed over in
 * order.
 */
struct mn_tcp_user {
    /* Takes a prefix of p; what it does not take is kept or dropped unacknowledged. */
    uint32_t (*rx)(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len);
    /* How many bytes from rcv_nxt on may be promised to the peer now. */
    uint32_t (*rx_space)(struct mn_engine *e, struct mn_tcb *t);
    /* Copies len bytes of the stream, from `off` bytes behind snd_una, to dst. Returns their
     * checksum sum (0 if !want_sum). */
    uint32_t (*tx_copy)(struct mn_engine *e, struct mn_tcb *t, uint32_t off, uint8_t *dst,
                        uint32_t len, bool want_sum);
    /* The first `len` bytes behind the old snd_una are acknowledged. */
    void (*tx_acked)(struct mn_engine *e, struct mn_tcb *t, uint32_t len);
    void (*event)(struct mn_engine *e, struct mn_tcb *t, enum mn_tcp_event ev, int err);
    /* The connection is over and `held` bytes are left: can the user still do something with them?
     */
    bool (*wants)(struct mn_engine *e, const struct mn_tcb *t, uint32_t held);
};

enum mn_recovery {
    MN_REC_OPEN = 0,
    MN_REC_FAST, /* fast recovery, RFC 6675 or RFC 6582 */
    MN_REC_LOSS, /* after a retransmission timeout, until what was outstanding then is acknowledged
                  */
};

/* A piece of sequence space: of the send scoreboard (SACKed by the peer) or of the receive queue.
 */
struct mn_range {
    uint32_t left, right;
    uint32_t next;                /* index into the pool, MN_NIL at the end */
    uint32_t first_blk, last_blk; /* receive queue: blocks with the bytes */
    uint32_t stamp;               /* receive queue: when it last grew */
};

#define MN_OOO_BLOCK_BYTES 2048u
struct mn_block {
    uint32_t next;
    uint32_t lane;     /* whose share it counts against */
    uint16_t off, len; /* used part of data */
    uint8_t data[MN_OOO_BLOCK_BYTES];
};

/* Flags of a connection. */
#define MN_TF_PASSIVE    (1u << 0)  /* came from LISTEN (RFC 9293 MUST-11) */
#define MN_TF_ACK_NOW    (1u << 1)  /* an acknowledgement is due at the end of this pass */
#define MN_TF_DIRTY      (1u << 2)  /* on the engine's list for output */
#define MN_TF_FIN_QUEUED (1u << 3)  /* the user has closed: FIN follows snd_end */
#define MN_TF_FIN_SENT   (1u << 4)  /* snd_nxt covers the FIN */
#define MN_TF_FIN_RCVD   (1u << 5)  /* rcv_nxt covers the peer's FIN */
#define MN_TF_TS         (1u << 6)  /* timestamps negotiated */
#define MN_TF_SACK       (1u << 7)  /* SACK negotiated */
#define MN_TF_WSCALE     (1u << 8)  /* window scaling negotiated */
#define MN_TF_NODELAY    (1u << 9)  /* no Nagle */
#define MN_TF_PERSIST    (1u << 10) /* rtx_at is the persist timer */
#define MN_TF_RTT        (1u << 11) /* rtt_seq is being timed */
#define MN_TF_KARN                                                                                 \
    (1u << 12) /* retransmitted data are outstanding: only timestamps give samples                 \
                */
#define MN_TF_ORPHAN    (1u << 13) /* the user has given it up */
#define MN_TF_KEEPALIVE (1u << 14)
#define MN_TF_QUICKACK  (1u << 15)
#define MN_TF_URG_SND   (1u << 16) /* snd_up is ahead of snd_una */
#define MN_TF_URG_RCV   (1u << 17) /* rcv_up is ahead of rcv_nxt */
#define MN_TF_RTX_ONE                                                                              \
    (1u << 18) /* send the segment at snd_una again, whatever the window of the path */
#define MN_TF_RESCUED (1u << 19) /* the one rescue retransmission of this recovery is done */
#define MN_TF_SYN_TIMEOUT                                                                          \
    (1u << 20) /* the SYN was retransmitted: RTO starts from 3 s (RFC 6298, 5.7) */
#define MN_TF_PROBE_NOW (1u << 21) /* the persist timer fired */
#define MN_TF_MORE                                                                                 \
    (1u << 22) /* the user has announced more data: hold a part-filled segment back */
#define MN_TF_FIN_OOO  (1u << 23) /* a FIN was seen ahead, at fin_seq */
#define MN_TF_R1       (1u << 24) /* told the user that R1 was exceeded */
#define MN_TF_HASHED   (1u << 25)
#define MN_TF_EOF_TOLD (1u << 27) /* the user knows of the peer's FIN */
#define MN_TF_ZOMBIE                                                                               \
    (1u << 28) /* no connection any more: only data that its user has still to take */
#define MN_TF_LINGER_PUSH                                                                          \
    (1u << 29) /* an orphan without a limit of its own: progress prolongs its time */
#define MN_TF_DOOMED (1u << 26) /* to be aborted with doom_err when output comes round */

struct mn_tcb {
    uint32_t laddr, raddr;
    uint16_t lport, rport;
    uint32_t hash_next;
    uint32_t out_next, out_prev; /* list of connections with something to send */
    uint32_t age_next, age_prev; /* in TIME-WAIT, or half open: by age */
    uint32_t flags;
    uint8_t state; /* enum mn_tcp_state */
    uint8_t recovery;
    uint8_t snd_wscale, rcv_wscale;
    uint8_t backoff; /* doublings of the timeout */
    uint8_t retries; /* retransmissions of the oldest data */
    uint8_t ttl, tos;

    /* Send sequence space: snd_una <= snd_nxt <= snd_end (+1 for the FIN). snd_nxt never goes back.
     */
    uint32_t iss, snd_una, snd_nxt, snd_end;
    uint32_t snd_wnd, snd_wl1, snd_wl2, snd_wnd_max;
    uint32_t snd_up;
    uint32_t mss;     /* payload bytes of a full segment, options of every segment taken off */
    uint32_t mss_opt; /* what the peer allows */

    /* Receive sequence space. rcv_adv is the right edge that was promised; it never retreats. */
    uint32_t irs, rcv_nxt, rcv_adv, rcv_up, fin_seq;
    uint32_t usr_nxt; /* what the user gets next; [usr_nxt, rcv_nxt) is acknowledged and waits in
                         the first range */
    uint32_t last_ack_sent;
    uint32_t unacked_bytes; /* received since the last acknowledgement */
    uint32_t rcv_buf;
    uint32_t ooo_head; /* ranges received ahead, in order */
    uint32_t ooo_count, ooo_bytes, ooo_stamp;
    uint32_t dsack_left, dsack_right; /* duplicate to report, left == right: none */

    /* Recovery. */
    uint32_t sack_head, sack_count; /* scoreboard, in order */
    uint32_t sacked_bytes;
    uint32_t recover; /* snd_nxt when recovery began */
    uint32_t rtx_nxt; /* what is below has been sent again (HighRxt + 1) */
    uint32_t dupacks;
    uint32_t dup_credit;    /* without SACK: bytes known to have left the network */
    uint32_t limited_bytes; /* sent by limited transmit */
    uint32_t karn_end; /* acknowledgements up to here may be for either copy of a retransmission */

    /* Timestamps (RFC 7323). */
    uint32_t ts_offset, ts_recent;
    uint64_t ts_recent_ns;

    /* Timers: due times in ns, 0 when off. One wheel timer serves them all and may fire early. */
    struct mn_timer timer;
    uint64_t rtx_at, delack_at, wait_at, keep_at;
    uint64_t rtx_since; /* since when the oldest data wait for an acknowledgement */
    uint64_t last_rx_ns, last_tx_ns;
    uint32_t srtt_us, rttvar_us, rto_us; /* srtt times 8, rttvar times 4 */
    uint32_t rtt_seq;
    uint64_t rtt_at;
    uint64_t challenge_ns; /* RFC 5961 throttle: when challenge_left is filled up again */
    uint32_t user_timeout_ms, linger_ms;
    uint32_t keep_idle_s, keep_interval_s;
    uint16_t keep_count, keep_sent;
    uint16_t maxseg;
    uint16_t challenge_left;
    uint32_t retransmits;
    int32_t doom_err;

    struct mn_cc cc;
    uint32_t nbr; /* neighbour entry of the next hop */

    const struct mn_tcp_user *user;
    uint32_t lane, slot;  /* the user's */
    uint32_t listener;    /* index, while half open */
    uint32_t listener_id; /* tells whether that listener still is the one */
    uint32_t mcb;         /* the rest of a connection of mnp (mnp.h); MN_NIL: TCP */
};
static_assert(sizeof(struct mn_tcb) <= 640, "an idle connection must stay small");

/* A received segment, host order, after the parse. */
struct mn_seg {
    uint32_t src, dst;
    uint16_t sport, dport;
    uint32_t seq, ack;
    uint32_t len; /* payload bytes, all pieces */
    uint32_t wnd; /* not scaled */
    uint16_t flags, urg;
    bool opts_bad;
    struct mn_tcp_opts opts;
    const uint8_t *data; /* payload in the first piece */
    uint32_t data_len;
    const struct mn_pkt *more; /* further pieces */
};

static inline uint32_t mn_seg_end(const struct mn_seg *s)
{
    return s->seq + s->len + ((s->flags & MN_TCP_SYN) != 0) + ((s->flags & MN_TCP_FIN) != 0);
}

/* tcp_conn.c: life of a connection. */
struct mn_tcb *mn_tcb_alloc(struct mn_engine *e);
struct mn_tcb *mn_tcp_passive(struct mn_engine *e, const struct mn_seg *s,
                              uint32_t listener); /* in SYN-RECEIVED; NULL: no room */
struct mn_tcb *mn_tcp_next_dirty(struct mn_engine *e);
void mn_tcb_free(struct mn_engine *e, struct mn_tcb *t); /* no event */
void mn_tcp_set_state(struct mn_engine *e, struct mn_tcb *t, enum mn_tcp_state state);
/* The user loses the connection (event CLOSED with err), then it is freed. */
void mn_tcp_drop(struct mn_engine *e, struct mn_tcb *t, int err);
void mn_tcp_enter_time_wait(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_established(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_set_mss(struct mn_engine *e, struct mn_tcb *t, uint32_t peer_mss);
/* lport 0: chosen. 0 or -EADDRINUSE, -EADDRNOTAVAIL, -EINVAL, -ENETUNREACH, -ENOBUFS. */
int mn_tcp_connect(struct mn_engine *e, struct mn_tcb **out, uint32_t laddr, uint16_t lport,
                   uint32_t raddr, uint16_t rport, const struct mn_tcp_user *user,
                   uint32_t timeout_ms);
/* What a connect of either transport asks of its addresses; fills in laddr, lport and the next hop.
 * 0 or an errno as above. */
int mn_tcp_endpoints(struct mn_engine *e, uint8_t l4, uint32_t *laddr, uint16_t *lport,
                     uint32_t raddr, uint16_t rport, uint32_t *nbr);
/* The first SYN of either transport goes out; timeout_ms 0: syn_timeout_ms. */
void mn_tcp_start_syn(struct mn_engine *e, struct mn_tcb *t, uint32_t timeout_ms);
void mn_tcp_queued(struct mn_engine *e, struct mn_tcb *t,
                   uint32_t bytes);                          /* the user has more bytes to send */
void mn_tcp_urgent(struct mn_engine *e, struct mn_tcb *t);   /* urgent data end at snd_end */
void mn_tcp_shutdown(struct mn_engine *e, struct mn_tcb *t); /* FIN behind what is queued */
/* Aborts later, from where nobody is in the midst of the connection. */
void mn_tcp_doom(struct mn_engine *e, struct mn_tcb *t, int err);
void mn_tcp_abort(struct mn_engine *e, struct mn_tcb *t,
                  int err); /* RST; event CLOSED unless orphaned */
/* The user goes away: FIN behind what is queued, or RST when unread data are lost (RFC 9293
 * SHLD-3). No more events. */
void mn_tcp_orphan(struct mn_engine *e, struct mn_tcb *t, uint32_t linger_ms, bool unread);
void mn_tcp_linger(struct mn_engine *e, struct mn_tcb *t,
                   uint32_t linger_ms); /* an orphan ends by then */
void mn_tcp_space(struct mn_engine *e,
                  struct mn_tcb *t); /* the user has made room: maybe tell the peer */
void mn_tcp_mark_dirty(struct mn_engine *e, struct mn_tcb *t);
uint32_t mn_tcp_iss(struct mn_engine *e, const struct mn_tcb *t);
uint32_t mn_tcp_ts_now(const struct mn_engine *e, const struct mn_tcb *t);

/* tcp_input.c, tcp_ack.c, tcp_listen.c */
void mn_tcp_rx(struct mn_engine *e, struct mn_pkt *pkt, const struct mn_ipv4 *ip, bool looped);
void mn_tcp_segment(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s);
void mn_tcp_syn_sent(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s);
void mn_tcp_listen_rx(struct mn_engine *e, uint32_t listener, struct mn_seg *s);
bool mn_tcp_ack_in(struct mn_engine *e, struct mn_tcb *t,
                   struct mn_seg *s);                         /* false: the segment ends here */
bool mn_tcp_fin_acked(struct mn_engine *e, struct mn_tcb *t); /* false: the connection is gone */
/* Makes room among a listener's half-open connections; false: none is old enough. */
bool mn_tcp_evict_half_open(struct mn_engine *e, uint32_t listener);
void mn_tcp_apply_syn_options(struct mn_engine *e, struct mn_tcb *t, const struct mn_seg *s);
/* The next hop of a frame of ours does not answer. */
void mn_tcp_unreachable(struct mn_engine *e, uint8_t l4, uint32_t laddr, uint16_t lport,
                        uint32_t raddr, uint16_t rport);
/* What an ICMP error that is not about sizes means for a connection of either transport. */
void mn_tcp_icmp_verdict(struct mn_engine *e, struct mn_tcb *t, const struct mn_icmp *icmp);
void mn_tcp_soft_error(struct mn_engine *e, struct mn_tcb *t, int err);
void mn_tcp_icmp_error(struct mn_engine *e, const struct mn_icmp *icmp,
                       const struct mn_icmp_quote *q);

/* tcp_output.c */
void mn_tcp_output(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_send_syn(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_send_ack(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_challenge(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_reply_rst(struct mn_engine *e,
                      const struct mn_seg *s); /* to a segment that belongs to nothing */
void mn_tcp_send_rst(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_send_probe(struct mn_engine *e,
                       struct mn_tcb *t); /* keep-alive: one octet below the window */

/* tcp_sack.c: the send scoreboard. */
bool mn_sack_update(struct mn_engine *e, struct mn_tcb *t,
                    const struct mn_seg *s);               /* true: something new was SACKed */
void mn_sack_prune(struct mn_engine *e, struct mn_tcb *t); /* forget what is below snd_una */
void mn_sack_clear(struct mn_engine *e, struct mn_tcb *t);
uint32_t mn_tcp_pipe(struct mn_engine *e, const struct mn_tcb *t);
bool mn_sack_head_lost(struct mn_engine *e, const struct mn_tcb *t);
/* Next range to send again below `limit`: true and [*left, *right). need_lost: only what RFC 6675
 * calls lost. */
bool mn_sack_next_hole(struct mn_engine *e, const struct mn_tcb *t, bool need_lost, uint32_t *left,
                       uint32_t *right);
/* The highest range below `recover` that SACK has not told; false: there is none. */
bool mn_sack_last_hole(const struct mn_engine *e, const struct mn_tcb *t, uint32_t *left,
                       uint32_t *right);

/* tcp_recv.c: data in, out-of-order queue. */
void mn_tcp_data_in(struct mn_engine *e, struct mn_tcb *t, struct mn_seg *s);
uint32_t mn_tcp_window(struct mn_engine *e,
                       struct mn_tcb *t);     /* value for the header; moves rcv_adv */
uint32_t mn_tcp_held(const struct mn_tcb *t); /* acknowledged bytes that the user has not taken */
void mn_tcp_tell_eof(struct mn_engine *e,
                     struct mn_tcb *t); /* once the user has everything before the FIN */
void mn_ooo_drain(struct mn_engine *e,
                  struct mn_tcb *t); /* hands over what has become deliverable */
void mn_tcp_fin_in(struct mn_engine *e, struct mn_tcb *t); /* the peer's FIN, in order */
void mn_ooo_clear(struct mn_engine *e, struct mn_tcb *t);
uint32_t mn_ooo_sack_blocks(struct mn_engine *e, struct mn_tcb *t, struct mn_sack_block *out,
                            uint32_t max);

/* tcp_timer.c */
void mn_tcp_timer_set(struct mn_engine *e, struct mn_tcb *t, uint64_t *field, uint64_t at_ns);
/* Whether this one has come; then it is off. */
bool mn_tcp_timer_due(const struct mn_engine *e, uint64_t *field);
void mn_tcp_rtx_arm(struct mn_engine *e,
                    struct mn_tcb *t); /* (re)starts the retransmission timer */
void mn_tcp_rtx_stop(struct mn_tcb *t);
void mn_tcp_fire(struct mn_engine *e, struct mn_tcb *t);
/* The timers that both transports have, then arms the next. */
void mn_tcp_fire_slow(struct mn_engine *e, struct mn_tcb *t);
void mn_tcp_rtt_sample(struct mn_engine *e, struct mn_tcb *t, uint64_t rtt_ns);
void mn_tcp_user_timer(struct mn_engine *e, struct mn_tcb *t,
                       uint64_t at_ns); /* in CLOSE-WAIT only; 0: off */
void mn_tcp_keep_touch(struct mn_engine *e, struct mn_tcb *t);

#endif
