/* SPDX-License-Identifier: MIT */
/*
 * Messages on a TCP stream: a 4-byte big-endian length, then the payload. Neither direction stores
 * payloads. What is sent is made again from the slots that are queued, so a stream that the peer
 * does not read costs 8 bytes a message; what is received is checked as it goes by.
 */
#ifndef MN_CLI_TCP_FRAME_H
#define MN_CLI_TCP_FRAME_H

#include "machnet/cli/msg_app.h"

#define MN_FRAME_PREFIX_BYTES 4u
/* The shortest frame: a prefix and the application header. */
#define MN_FRAME_HEAD_BYTES (MN_FRAME_PREFIX_BYTES + MN_MSG_HEADER_BYTES)

/* A queue of messages to send, all of one size. */
struct mn_frame_tx {
    uint64_t *slots;
    uint32_t mask; /* capacity - 1 */
    uint32_t head;
    uint32_t count;
    uint32_t payload_bytes;
    uint32_t head_sent; /* bytes of the first frame that are sent */
};

/* `capacity` is a power of two. Returns 0 or -ENOMEM. */
int mn_frame_tx_open(struct mn_frame_tx *tx, uint32_t capacity, uint32_t payload_bytes);
void mn_frame_tx_close(struct mn_frame_tx *tx);
/* Writes the next bytes of the stream, at most `room`, and takes nothing off the queue. */
uint32_t mn_frame_tx_copy(const struct mn_frame_tx *tx, uint8_t *out, uint32_t room);
/* Takes `bytes` off the queue and returns how many frames were completed by them. */
uint32_t mn_frame_tx_consume(struct mn_frame_tx *tx, uint32_t bytes);

static inline uint32_t mn_frame_tx_room(const struct mn_frame_tx *tx)
{
    return tx->mask + 1 - tx->count;
}

static inline void mn_frame_tx_push(struct mn_frame_tx *tx, uint64_t slot)
{
    tx->slots[(tx->head + tx->count++) & tx->mask] = slot;
}

/* The message that is being received, and the last one that was. */
struct mn_frame_rx {
    uint64_t slot;
    uint32_t length;   /* payload bytes */
    uint32_t seen;     /* bytes of the frame so far, prefix included; 0 between frames */
    uint32_t wrong_at; /* as mn_msg_check() has it, while `verify` */
    uint8_t wrong_got;
    bool verify;
    uint8_t head[MN_FRAME_HEAD_BYTES];
};

/* Reads from *at up to the end of one message. Returns 1 when a message is complete, 0 when all
 * input is used up, -EPROTO on a length that is not allowed (in `length`). */
int mn_frame_rx_next(struct mn_frame_rx *rx, const uint8_t **at, const uint8_t *end);

/* How many bytes may be read before more than `messages` messages could be complete. */
static inline uint64_t mn_frame_rx_limit(const struct mn_frame_rx *rx, uint32_t messages)
{
    if (messages == 0)
        return 0;
    uint64_t limit = (uint64_t)messages * MN_FRAME_HEAD_BYTES;
    if (rx->seen >= MN_FRAME_PREFIX_BYTES)
        limit += (uint64_t)rx->length + MN_FRAME_PREFIX_BYTES - MN_FRAME_HEAD_BYTES;
    return limit - rx->seen;
}

#endif
