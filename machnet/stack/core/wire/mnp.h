/* SPDX-License-Identifier: MIT */
/* The header of the Machnet message protocol, behind UDP: plain mode and what extended mode puts
 * into its unused bytes. docs/protocol.md has the layout byte by byte. */
#ifndef MN_WIRE_MNP_H
#define MN_WIRE_MNP_H

#include "../base.h"
#include "err.h"

#define MN_MNP_HLEN   54u
#define MN_MNP_MAGIC  0x4e53u
#define MN_MNP_NO_ACK 0xffffffffu /* acknowledgement number of plain DATA */

/* net_flags: exactly one of these. */
enum mn_mnp_kind {
    MN_MNP_DATA = 0x00,
    MN_MNP_SYN = 0x01,
    MN_MNP_ACK = 0x02,
    MN_MNP_SYNACK = 0x03,
    MN_MNP_FIN = 0x04, /* extended mode */
    MN_MNP_RST = 0x80,
};

/* msg_flags of DATA; the other bits are another host's business. */
#define MN_MNP_FIRST 0x01u
#define MN_MNP_MORE  0x02u /* more packets of this message follow */
#define MN_MNP_LAST  0x04u

#define MN_MNP_MARKER   0x4d4e5854u /* "MNXT": SYN and SYN-ACK of extended mode */
#define MN_MNP_VERSION  1u
#define MN_MNP_MSS      1418u /* plain mode: largest payload */
#define MN_MNP_MSS_MIN  512u
#define MN_MNP_MSS_MAX  8900u
#define MN_MNP_WND_MAX  256u /* packets that the SACK bitmap can tell of */
#define MN_MNP_SACK_LEN 4u   /* words of the bitmap */

/* Features of extended mode. */
#define MN_MNP_F_SACK     0x0001u
#define MN_MNP_F_DATA_ACK 0x0002u /* DATA acknowledges */
#define MN_MNP_F_TS       0x0004u
#define MN_MNP_F_WND      0x0008u
#define MN_MNP_F_FIN      0x0010u
#define MN_MNP_F_REASON   0x0020u
#define MN_MNP_F_MSGLEN   0x0040u
#define MN_MNP_F_ALL      0x007fu

/* Why a connection is reset. */
enum mn_mnp_reason {
    MN_MNP_R_NONE = 0,
    MN_MNP_R_CLOSED = 1,
    MN_MNP_R_REFUSED = 2,
    MN_MNP_R_TIMEOUT = 3,
    MN_MNP_R_PROTOCOL = 4,
    MN_MNP_R_TOO_LARGE = 5,
    MN_MNP_R_RESOURCES = 6,
    MN_MNP_R_APP_GONE = 7,
};

/* What the bytes from 12 on mean depends on the kind and on the mode of the flow, which the packet
 * does not tell: all of it is read. */
struct mn_mnp {
    uint8_t kind; /* enum mn_mnp_kind */
    uint8_t msg_flags;
    uint32_t seq;
    uint32_t ack;
    uint32_t word12;  /* marker of SYN and SYN-ACK, length of the message of DATA, reason of RST */
    uint8_t version;  /* SYN, SYN-ACK */
    uint16_t feats;   /* SYN, SYN-ACK */
    uint16_t mss;     /* SYN, SYN-ACK */
    uint16_t syn_wnd; /* SYN, SYN-ACK */
    uint64_t sack[MN_MNP_SACK_LEN]; /* ACK, FIN: bit i of the bitmap is bit i % 64 of word i / 64 */
    uint16_t wnd;                   /* extended: window in packets; plain: sack_bitmap_count */
    uint32_t tsval, tsecr;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
};

/* Refuses TRUNCATED, BAD_VERSION (another magic) and UNSUPPORTED (another kind). */
int mn_mnp_parse(const uint8_t *p, uint32_t len, struct mn_mnp *out);

/* Fields that the kind of packet, or plain mode, does not have are sent as zero. */
struct mn_mnp_repr {
    uint8_t kind;
    uint8_t msg_flags;
    bool ext;
    uint32_t seq;
    uint32_t ack;
    uint32_t word12; /* DATA: length of the message; RST: reason */
    uint8_t version;
    uint16_t feats;
    uint16_t mss;
    uint16_t wnd;
    const uint64_t *sack; /* MN_MNP_SACK_LEN words, NULL: none */
    uint32_t tsval, tsecr;
};

/* Writes MN_MNP_HLEN bytes. */
uint32_t mn_mnp_emit(uint8_t *p, const struct mn_mnp_repr *r);

#endif
