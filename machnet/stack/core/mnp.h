/* SPDX-License-Identifier: MIT */
/*
 * The Machnet message protocol (docs/protocol.md). A connection is a struct mn_tcb, which it shares
 * with TCP: addresses, states, timers, lists, its application. Here sequence numbers count packets.
 * What TCP has no use for is in a struct mn_mcb beside it.
 */
#ifndef MN_MNP_H
#define MN_MNP_H

#include "tcb.h"

struct mn_lane;
struct mn_slot;

#define MN_MNP_PLAIN_INFLIGHT 32u /* what a C++ host has room for, by its own window */
#define MN_MNP_ANSWERS        4u  /* ACKs in vain before they are put off */
#define MN_MNP_UNACKED_MAX    16u /* packets whose acknowledgement may be put off */
#define MN_MNP_NO_WND         64u /* extended mode without the window feature */

/* State of a packet that was sent. */
#define MN_MS_SACKED (1u << 0)
#define MN_MS_LOST   (1u << 1) /* to be sent again */
#define MN_MS_AGAIN  (1u << 2) /* was sent again */

struct mn_mnp_sent {
    uint32_t buf; /* where it begins in the send queue; MN_NIL: FIN */
    uint32_t sent_us;
    uint16_t off, len;
    uint8_t msg_flags;
    uint8_t state;
    uint16_t zero;
};
static_assert(sizeof(struct mn_mnp_sent) == 16, "four to a cache line");

enum { MN_MH_NONE = 0, MN_MH_DATA, MN_MH_FIN };

/* A packet received ahead, or one that there is no room for. */
struct mn_mnp_held {
    uint32_t blk; /* first of its blocks */
    uint32_t msg_len;
    uint16_t len;
    uint8_t msg_flags;
    uint8_t kind; /* MN_MH_NONE: nothing */
};

struct mn_mcb {
    bool ext;        /* mode of the flow */
    bool ts_pending; /* t->ts_recent is still to be echoed */
    bool rack_valid; /* rack_* say something */
    bool reordered;  /* packets overtake each other on this path */
    bool pto;        /* rtx_at is the time for a tail loss probe */
    bool heard_data; /* plain: the peer has sent DATA */
    bool grows;      /* plain: the message waits to be promised more than it was */
    uint8_t acks_equal;
    uint8_t probes;    /* tail loss probes that are unanswered */
    uint8_t ack_again; /* plain: how often the ACK of the handshake was repeated */
    uint16_t feats;
    uint32_t last_ack; /* plain: what the last ACK said */
    uint64_t ack_ns;   /* and when; in both modes */
    /* Whether the application's answers are quick enough to carry acknowledgements. */
    bool ack_alone;    /* nothing was sent since the last ACK */
    uint8_t answers;   /* how many ACKs in a row were in vain */
    uint16_t unacked;  /* packets taken in order since the last acknowledgement */
    uint32_t wnd_ts;   /* timestamp of the packet that set snd_wnd */
    uint64_t wnd_ns;   /* and when it came */
    uint32_t wnd_edge; /* right edge of the window that was told last; it may go back */

    /* Where the next packet is cut from the send queue: cut_off bytes into slot->tx_cur. */
    uint32_t cut_off, cut_left;
    uint32_t snd_bytes; /* queued or not acknowledged */

    /* Packets of [snd_una, snd_nxt) that are SACKed, and that are lost and not sent again. */
    uint32_t n_sacked, n_lost;
    uint32_t lost_from; /* nothing below it is lost */
    uint32_t high_sack; /* highest packet that was SACKed */
    /* RACK (RFC 8985): of the packets that have arrived, the one sent last. */
    uint32_t rack_us, rack_seq, rack_rtt_us;
    uint64_t rto_at; /* when rtx_at, if it is the time for a probe, becomes the timeout */
    uint64_t reo_at; /* when the next packet counts as lost */
    uint32_t min_rtt_us, min_rtt_new_us;
    uint64_t min_rtt_at; /* when min_rtt_new_us takes over */
    /* Before a timeout that may turn out to have been for nothing. */
    uint32_t undo_us, undo_cwnd, undo_ssthresh;
    bool undo;
    /* One round trip for the delivery rate. */
    uint32_t round_end, round_pkts, round_us;

    uint32_t n_held;                         /* packets in held */
    struct mn_mnp_sent sent[MN_MNP_WND_MAX]; /* by sequence number modulo their number */
    struct mn_mnp_held held[MN_MNP_WND_MAX];
};

/* What becomes of a DATA packet in order. */
enum mn_mnp_taken { MN_MNP_TAKEN, MN_MNP_BLOCKED, MN_MNP_BROKEN };

/* mnp_conn.c */
int mn_mnp_connect(struct mn_engine *e, struct mn_tcb **out, uint32_t laddr, uint16_t lport,
                   uint32_t raddr, uint16_t rport, const struct mn_tcp_user *user,
                   uint32_t timeout_ms);
struct mn_tcb *mn_mnp_passive(struct mn_engine *e, const struct mn_ipv4 *ip,
                              const struct mn_udp *udp, uint32_t listener);
/* Sets the mode, from the peer's SYN or SYN-ACK. */
void mn_mnp_apply_syn(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p);
void mn_mnp_established(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_free(struct mn_engine *e, struct mn_tcb *t); /* what it has besides the block */
void mn_mnp_fire(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_rtx_arm(struct mn_engine *e, struct mn_tcb *t); /* by probe or by timeout */
uint32_t mn_mnp_now_us(const struct mn_engine *e);
uint32_t
mn_mnp_mss(const struct mn_engine *e); /* largest payload of ours; below MN_MNP_MSS_MIN: no mnp */
int mn_mnp_errno(uint32_t reason);

/* mnp_in.c. False: this is no packet of the protocol. */
bool mn_mnp_rx(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp);
void mn_mnp_space(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_icmp_error(struct mn_engine *e, const struct mn_icmp *icmp,
                       const struct mn_icmp_quote *q);

/* mnp_recv.c */
void mn_mnp_data_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p);
uint32_t mn_mnp_window(struct mn_engine *e, struct mn_tcb *t); /* to be advertised; moves rcv_adv */
void mn_mnp_drain(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_held_clear(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_sack_map(struct mn_engine *e, const struct mn_tcb *t, uint64_t out[MN_MNP_SACK_LEN]);

/* mnp_ack.c. False: the connection is gone. */
bool mn_mnp_ack_in(struct mn_engine *e, struct mn_tcb *t, const struct mn_mnp *p);
uint32_t mn_mnp_pipe(const struct mn_engine *e, const struct mn_tcb *t); /* packets in flight */
void mn_mnp_detect_lost(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_mark_lost(struct mn_engine *e, struct mn_tcb *t, uint32_t seq);

/* mnp_out.c */
void mn_mnp_output(struct mn_engine *e, struct mn_tcb *t);
void mn_mnp_send_rst(struct mn_engine *e, struct mn_tcb *t, int err);
void mn_mnp_send_ack(struct mn_engine *e, struct mn_tcb *t);
/* Old DATA has come again. So late, it was sent because the ACKs of it were lost: one more may go.
 * Any other packet that is repeated (SYN-ACK, RST) says nothing of the kind. */
void mn_mnp_ack_lost(struct mn_engine *e, struct mn_mcb *m);
void mn_mnp_send_probe(struct mn_engine *e, struct mn_tcb *t); /* keep-alive */
/* A reset that belongs to no connection, in answer to a packet. */
void mn_mnp_reply_rst(struct mn_engine *e, const struct mn_ipv4 *ip, const struct mn_udp *udp,
                      uint32_t seq, uint32_t ack, uint32_t reason);

/* mnp_lane.c: messages of a lane and packets. */
void mn_mnp_queued(struct mn_engine *e, struct mn_tcb *t, uint32_t msg_len);
void mn_mnp_cut(struct mn_engine *e, struct mn_tcb *t, struct mn_mnp_sent *out);
/* Copies the packet's payload; its sum, 0 if !want_sum. */
uint32_t mn_mnp_copy(struct mn_engine *e, const struct mn_tcb *t, const struct mn_mnp_sent *p,
                     uint8_t *dst, bool want_sum);
uint32_t mn_mnp_msg_len(const struct mn_engine *e, const struct mn_tcb *t,
                        const struct mn_mnp_sent *p);
void mn_mnp_acked(struct mn_engine *e, struct mn_tcb *t); /* snd_una has moved */
/* pieces: the payload is in blocks from `blk` on when p is NULL. */
enum mn_mnp_taken mn_mnp_deliver(struct mn_engine *e, struct mn_tcb *t, uint8_t msg_flags,
                                 uint32_t msg_len, const uint8_t *p, uint32_t blk, uint32_t len);
extern const struct mn_tcp_user mn_user_mnp;

#endif
