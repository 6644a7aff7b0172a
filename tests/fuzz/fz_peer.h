/* SPDX-License-Identifier: MIT */
/*
 * The other hosts of a hand-fed engine. They read what the engine transmits, so that the segments
 * which the input asks for can be placed relative to the connection's own numbers: that is what
 * brings an input past the checks of sequence numbers. They also hold the engine to what may be
 * seen from outside: headers and checksums, acknowledgements and window edges that never go back,
 * payload that is what the application sent.
 */
#ifndef FZ_PEER_H
#define FZ_PEER_H

#include "fz_host.h"

#define FZ_CONNS       8u
#define FZ_PORT_FIRST  1001u /* 1001 and 1002: streams, 1003 and 1004: framed */
#define FZ_PORT_COUNT  4u
#define FZ_PERIOD      (1u << 17) /* bytes after which every stream repeats itself */
#define FZ_PEER_IP     FZ_IP(2)
#define FZ_PEER_PORT   5000u /* and the seven behind it */
#define FZ_MESSAGE_MAX 8u

/* What is known of a connection of the message protocol besides. */
struct fz_mnp {
    bool ext;        /* what we said in our SYN or SYN-ACK */
    bool sack_known; /* the bitmap is one that came with `ack` */
    uint64_t sack[MN_MNP_SACK_LEN];
    uint32_t syn_ack;        /* what the engine's SYN or SYN-ACK acknowledged */
    uint32_t tx_msg, tx_off; /* the engine's next new packet: message, and where in it */
    struct {
        uint32_t seq, len, sum;
    } sent[MN_MNP_WND_MAX]; /* length 0: nothing */
};

/* One pair of addresses, whatever connections come and go on it. */
struct fz_conn {
    uint32_t ip; /* of the peer */
    uint16_t port, engine_port;
    bool used;
    bool tainted;           /* the input chose bytes of the stream: nothing is known about them */
    bool synced;            /* the engine's SYN was seen */
    bool acked;             /* ack and edge are valid */
    uint32_t iss, nxt, una; /* engine's: initial number, highest end sent; una is a guess */
    uint32_t ack, edge;     /* engine's last acknowledgement, highest right edge promised */
    uint8_t wscale;
    bool engine_ts, peer_ts;
    uint32_t tsval; /* the engine's last */
    uint32_t p_iss; /* ours */
    uint32_t ts;    /* our clock */
    struct fz_mnp mnp;
};

struct fz_peer {
    struct fz_host *h;
    struct fz_conn conns[FZ_CONNS];
    uint32_t ip_id;
    /* Frames may get lost or be late between the engine and its NIC, among them the SYN of a new
     * connection: what is seen is then no longer the history of one. */
    bool frames_lost;
};

/* A segment to be made; numbers are absolute. */
struct fz_seg {
    uint32_t seq, ack, len, split;
    uint16_t flags, wnd, urg;
    struct mn_tcp_opts opts;
    uint8_t raw_opts[40];
    uint32_t raw_opts_len;  /* these instead of opts */
    const uint8_t *payload; /* NULL: what belongs at seq */
    bool bad_csum;
};

/* The port that decides what is spoken: the listener's, else the remote one. */
uint16_t fz_deciding(uint16_t local, uint16_t remote);
bool fz_is_framed(uint16_t local, uint16_t remote);
/* Lengths of the messages of which a framed stream is made, in turn; returns how many. */
uint32_t fz_messages(uint16_t local, uint16_t remote, const uint32_t **lens);
/* What belongs at offset `off` (from the SYN on) of any stream between the two ports. */
void fz_content(uint16_t local, uint16_t remote, uint32_t off, uint8_t *out, uint32_t len);

void fz_peer_open(struct fz_peer *p, struct fz_host *h);
/* Takes everything that the engine has transmitted, and checks it. Answers ARP if `arp`. */
void fz_peer_read(struct fz_peer *p, bool arp);
void fz_peer_send(struct fz_peer *p, struct fz_conn *c, const struct fz_seg *s);
/* An IPv4 packet with a right header checksum around `len` bytes of anything. */
struct fz_frame *fz_ip_frame(struct fz_peer *p, uint32_t src, uint8_t proto, uint32_t len);
void fz_inject(struct fz_peer *p, struct fz_frame *f);

uint16_t fz_plain_sum(const uint8_t *p, uint32_t len, uint32_t sum);
struct fz_conn *fz_conn_find(struct fz_peer *p, uint32_t ip, uint16_t port, uint16_t engine_port);

/* fz_mnp.c: the message protocol. Messages are of fixed lengths, in turn, and are cut by us so that
 * each packet is known from its number. */
uint32_t fz_mnp_message_len(uint16_t local, uint16_t remote, uint32_t msg);
uint32_t fz_mnp_message_at(uint32_t msg); /* of fz_content */
void fz_mnp_read(struct fz_peer *p, const struct mn_ipv4 *ip, const struct fz_frame *f);
/* As fz_segment. */
bool fz_mnp_segment(struct fz_in *in, struct fz_peer *p, uint8_t kind);

/* fz_segment.c */
/* One of the connections seen so far, or a pair of addresses that may be new; NULL: no such one. */
struct fz_conn *fz_pick_conn(struct fz_peer *p, uint8_t b);
/* Makes a segment of a kind (0 to 11) and puts it into the NIC; true: the engine shall see it now.
 */
bool fz_segment(struct fz_in *in, struct fz_peer *p, uint8_t kind);

#endif
