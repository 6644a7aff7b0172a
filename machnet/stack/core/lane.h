/* SPDX-License-Identifier: MIT */
/* The engine's side of a channel: private tables over the shared rings, and the two users of TCP
 * (framed messages, streams). */
#ifndef MN_LANE_H
#define MN_LANE_H

#include "channel.h"
#include "tcb.h"

struct mn_engine;

#define MN_LARGE_MSG_BYTES                                                                         \
    65536u /* above it a message waits for its turn as the channel's one large message */
#define MN_FRAME_PREFIX 4u

/* Who has a buffer, and what it is used for: the truth about both pools, out of the application's
 * reach. */
struct mn_txbuf {
    uint32_t next; /* next buffer of the flow's send queue */
    uint32_t len;
    uint32_t msg_len; /* on a message's first buffer */
    uint8_t owned;    /* the engine has it */
    uint8_t first;    /* the framing prefix goes in front */
    uint16_t zero;
};

struct mn_rxbuf {
    uint32_t next; /* next buffer of the message being assembled */
    uint32_t len;
    uint32_t flow;   /* flow id it was delivered to, while the application has it */
    uint32_t shared; /* the application has it */
};

enum mn_slot_state {
    MN_SLOT_FREE = 0,
    MN_SLOT_LIVE,  /* a connection belongs to it */
    MN_SLOT_ENDED, /* END delivered or to be delivered; waits for RELEASE */
};

#define MN_SF_OPEN       (1u << 0) /* on the lane's list of part-filled stream buffers */
#define MN_SF_CLOSED     (1u << 2) /* the application has given it up */
#define MN_SF_PENDING    (1u << 3) /* counted in its listener's backlog */
#define MN_SF_CONNECTING (1u << 4) /* RESULT is owed */
#define MN_SF_WAIT_LARGE (1u << 5) /* in the queue for the large message's place */
#define MN_SF_HAS_LARGE  (1u << 6)
#define MN_SF_BLOCKED    (1u << 7)  /* input waits for buffers */
#define MN_SF_TOUCHED    (1u << 8)  /* on the list of flows whose window may have grown */
#define MN_SF_IN_MSG     (1u << 9)  /* between a prefix and the end of its message */
#define MN_SF_SHUT       (1u << 10) /* FIN queued */
#define MN_SF_EOF        (1u << 11) /* the peer's FIN came */
#define MN_SF_RELEASED   (1u << 12) /* the application has seen END */
#define MN_SF_KEPT       (1u << 13) /* TCP still has the last byte of the prefix */

struct mn_slot {
    uint32_t tcb; /* MN_NIL: none (any more) */
    uint16_t gen;
    uint8_t state;
    uint8_t proto;
    uint32_t flags;
    uint32_t listener, listener_id;
    uint32_t token;                /* of the connect that is owed a RESULT */
    uint32_t next;                 /* in one of the lane's lists */
    uint32_t wait_next, wait_prev; /* in the queue for the large place, or for buffers */
    uint32_t open_next;
    /* Send queue: buffers in order; tx_seq is the stream position of the first one's start (with
     * its prefix). */
    uint32_t tx_head, tx_tail;
    uint32_t tx_bufs;
    uint32_t tx_head_seq;          /* sequence number of the first byte of tx_head */
    uint32_t tx_rcur, tx_rcur_seq; /* the same for what is sent again */
    uint32_t tx_cur, tx_cur_seq;   /* where the last copy ended: new data are usually there */
    /* Receive side. */
    uint32_t unread_bytes;        /* delivered to the application and not given back */
    uint32_t held_bufs;           /* receive buffers with the application or being filled */
    uint32_t asm_first, asm_last; /* buffers of the message (or stream piece) being filled */
    uint32_t msg_len, msg_have;
    uint32_t reserved_bufs; /* still guaranteed for this message */
    uint8_t prefix[4];
    uint32_t prefix_have;
    uint32_t rx_msgs, tx_msgs; /* a framed flow whose peer has sent FIN ends once these are equal:
                                  every request is answered */
    uint64_t progress_ns;
};

struct mn_list {
    uint32_t head, tail;
};

struct mn_lane {
    struct mn_engine *e;
    uint32_t number;
    struct mn_chan_geometry geo;
    struct mn_lane_shared *sh;
    uint8_t *tx_pool, *rx_pool;
    struct mn_ring_cons submit, released, ctl_submit;
    struct mn_ring_prod completed, deliver, ctl_complete;
    struct mn_txbuf *txbufs;
    struct mn_rxbuf *rxbufs;
    uint32_t *rx_free; /* stack */
    uint32_t rx_n_free, rx_high;
    uint32_t rx_claimed; /* free buffers already promised to messages being assembled */
    uint32_t rx_reserve; /* the last ones: for flows that hold fewer than two */
    struct mn_slot *slots;
    uint32_t *slot_free;
    uint32_t slot_n_free, slot_high;
    uint32_t slots_used;

    /* A message on its way out of the submit ring. */
    uint32_t sub_flow, sub_first, sub_last, sub_len, sub_n;
    bool sub_open;

    struct mn_list
        open; /* stream slots with a part-filled buffer, to be delivered at the end of the pass */
    struct mn_list blocked; /* slots whose input waits for buffers */
    struct mn_list large;   /* slots that wait for the large place */
    uint32_t large_slot;    /* who has it, MN_NIL: nobody */
    struct mn_list touched; /* slots that gave buffers back in this pass */
    struct mn_timer timer;  /* progress of the large message; end of linger */
    bool far;               /* the application is another process */
    bool detached;
    bool dead_told; /* the application knows; its own word for it cannot be trusted */
    bool wake; /* buffers came free although the application gave none back: waiters may go on */
    uint32_t owed; /* connects under way: the RESULT of each has a place in ctl_complete */
    uint32_t dead; /* errno why */
};

/* lane.c: attach, detach, control. */
void mn_lane_poll(struct mn_engine *e, struct mn_lane *l);
void mn_lane_publish(struct mn_engine *e, struct mn_lane *l); /* end of the pass: rings, wake-up */
/* The application wrote nonsense: marks the lane dead; its flows are aborted at the end of the
 * pass, when nothing else is in their midst. */
void mn_lane_kill(struct mn_lane *l, uint32_t err);
void mn_lane_fire(struct mn_engine *e, struct mn_lane *l);
bool mn_lane_has_work(const struct mn_lane *l);
struct mn_slot *mn_lane_slot(struct mn_lane *l, uint32_t flow); /* live id or NULL */
uint32_t mn_lane_flow_id(const struct mn_lane *l, const struct mn_slot *s);

/* lane_ctl.c */
void mn_lane_ctl(struct mn_engine *e, struct mn_lane *l);
uint32_t mn_lane_slot_alloc(struct mn_lane *l, uint8_t proto);
void mn_lane_slot_end(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s, int err);
void mn_lane_slot_free(struct mn_lane *l, struct mn_slot *s);
/* Ends a framed flow whose peer has closed, once every message of the peer has its answer. */
void mn_lane_eof_check(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s);
void mn_lane_close_flow(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                        uint32_t linger_ms);
extern const struct mn_tcp_user mn_user_framed, mn_user_stream;
/* lane_opt.c. 0 or -ENOTCONN, -EINVAL, -ENOPROTOOPT. */
int mn_lane_setopt(struct mn_engine *e, struct mn_lane *l, uint32_t flow, uint32_t opt, uint64_t v);
int mn_lane_getopt(struct mn_engine *e, struct mn_lane *l, uint32_t flow, uint32_t opt,
                   uint64_t *v);
void mn_lane_unlisten_all(struct mn_engine *e, struct mn_lane *l);
/* A passive open is through: finds it a slot of its listener's channel, or refuses for now. */
bool mn_lane_accept(struct mn_engine *e, struct mn_tcb *t);

/* lane_tx.c: submit ring to send queue, and the send side of both users. */
uint32_t mn_lane_submit(struct mn_engine *e, struct mn_lane *l, uint32_t budget);
uint32_t mn_lane_tx_copy(struct mn_engine *e, struct mn_tcb *t, uint32_t off, uint8_t *dst,
                         uint32_t len, bool want_sum);
void mn_lane_tx_acked(struct mn_engine *e, struct mn_tcb *t, uint32_t len);
/* Gives back what is in front of buffer `keep`. */
void mn_lane_tx_upto(struct mn_lane *l, struct mn_slot *s, uint32_t keep);
void mn_lane_tx_free(struct mn_lane *l, struct mn_slot *s); /* gives the whole send queue back */

/* lane_rx.c: receive buffers; framing.c, stream.c: what fills them. */
void mn_lane_released(struct mn_engine *e, struct mn_lane *l);
uint32_t mn_lane_rx_alloc(struct mn_lane *l,
                          struct mn_slot *s); /* MN_NIL: none for this flow now */
uint32_t mn_lane_rx_quick(struct mn_lane *l, struct mn_slot *s);
void mn_lane_rx_unget(struct mn_lane *l, struct mn_slot *s, uint32_t buf);
void mn_lane_rx_drop(struct mn_lane *l, struct mn_slot *s); /* what is being filled goes back */
void mn_lane_rx_block(struct mn_lane *l, struct mn_slot *s);
bool mn_lane_reserve(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s);
void mn_lane_unreserve(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s);
void mn_lane_deliver(struct mn_lane *l, struct mn_slot *s, uint32_t buf, uint16_t flags);
void mn_lane_deliver_mark(struct mn_lane *l, struct mn_slot *s, uint16_t flags, uint32_t len);
uint32_t mn_lane_rx_space(struct mn_engine *e, struct mn_tcb *t);
uint32_t mn_framing_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len);
/* Bytes of the message under way, whose buffers were promised; returns how many were its own. */
uint32_t mn_framing_body(struct mn_engine *e, struct mn_lane *l, struct mn_slot *s,
                         const uint8_t *p, uint32_t len);
uint32_t mn_stream_rx(struct mn_engine *e, struct mn_tcb *t, const uint8_t *p, uint32_t len);
void mn_stream_flush(struct mn_lane *l, struct mn_slot *s);
void mn_stream_flush_all(struct mn_lane *l);

#endif
