/* SPDX-License-Identifier: MIT */
/*
 * A NIC for the fuzzers. Every frame has memory of its own, of exactly its length, so that one byte
 * read or written beyond it is found; every packet is counted, so that one kept, or given back
 * twice, is found too. It can be told to run out of packets and to take no more frames.
 */
#ifndef FZ_NIC_H
#define FZ_NIC_H

#include "machnet/stack/core/nic.h"

struct fz_frame {
    struct fz_frame *next;
    uint8_t *data;
    uint32_t len;
    uint32_t split; /* received in pieces: the length of the first one; 0: in one */
    uint16_t gso_size, l4_off, csum_off;
    uint8_t csum; /* enum mn_csum_state */
    uint8_t tag;  /* the harness's own */
    uint64_t at_ns;
    uint32_t iss; /* of the connection that sent it, when nothing in it tells which one that was */
    bool has_iss;
};

struct fz_queue {
    struct fz_frame *head, *tail;
    uint32_t n;
};

struct fz_nic {
    struct mn_nic nic;
    struct fz_queue rx, tx;
    uint32_t live;       /* packets that the engine holds */
    uint32_t alloc_fail; /* that many allocations fail */
    uint32_t tx_stuck;   /* that many bursts are refused */
    uint32_t tx_limit;   /* frames taken per burst */
};

/* caps: bit 0 tx_csum_tcp, 1 tx_gso (with 0), 2 rx_csum_trusted. */
void fz_nic_open(struct fz_nic *n, uint32_t mtu, uint8_t caps, uint8_t mac_last);
/* Traps when the engine has not given every packet back. */
void fz_nic_close(struct fz_nic *n);
struct fz_frame *fz_frame_new(uint32_t len);
void fz_frame_free(struct fz_frame *f);
void fz_queue_put(struct fz_queue *q, struct fz_frame *f);
struct fz_frame *fz_queue_get(struct fz_queue *q);

/* Called before the process ends: what there is to tell about the engines. NULL: nothing. */
extern void (*fz_on_panic)(void);

/* A failed check of the harness: says what, and ends the process as a crash. */
#define FZ_CHECK(cond) ((cond) ? (void)0 : mn_panic(__FILE__, __LINE__, #cond))

#endif
