/* SPDX-License-Identifier: MIT */
#include "machnet/cli/tcp_frame.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

int mn_frame_tx_open(struct mn_frame_tx *tx, uint32_t capacity, uint32_t payload_bytes)
{
    memset(tx, 0, sizeof(*tx));
    tx->slots = malloc(capacity * sizeof(*tx->slots));
    if (tx->slots == NULL)
        return -ENOMEM;
    tx->mask = capacity - 1;
    tx->payload_bytes = payload_bytes;
    return 0;
}

void mn_frame_tx_close(struct mn_frame_tx *tx)
{
    free(tx->slots);
    tx->slots = NULL;
}

static void frame_head(uint8_t *head, uint32_t payload_bytes, uint64_t slot)
{
    uint32_t prefix = htobe32(payload_bytes);
    memcpy(head, &prefix, sizeof(prefix));
    mn_msg_slot_write(head + MN_FRAME_PREFIX_BYTES, slot);
}

/* The bytes [from, from + room) of one frame, or as many of them as there are. */
static uint32_t frame_part(uint8_t *out, uint32_t room, uint32_t payload_bytes, uint64_t slot,
                           uint32_t from)
{
    uint32_t total = payload_bytes + MN_FRAME_PREFIX_BYTES;
    uint32_t length = total - from < room ? total - from : room;
    uint32_t done = 0;
    if (from < MN_FRAME_HEAD_BYTES) {
        uint8_t head[MN_FRAME_HEAD_BYTES];
        frame_head(head, payload_bytes, slot);
        done = MN_FRAME_HEAD_BYTES - from < length ? MN_FRAME_HEAD_BYTES - from : length;
        memcpy(out, head + from, done);
    }
    mn_msg_fill(out + done, length - done, from + done - MN_FRAME_PREFIX_BYTES);
    return length;
}

uint32_t mn_frame_tx_copy(const struct mn_frame_tx *tx, uint8_t *out, uint32_t room)
{
    uint32_t payload = tx->payload_bytes;
    uint32_t frame = payload + MN_FRAME_PREFIX_BYTES;
    uint32_t from = tx->head_sent;
    uint32_t done = 0;
    for (uint32_t i = 0; i < tx->count && done < room; i++) {
        uint64_t slot = tx->slots[(tx->head + i) & tx->mask];
        /* The usual case, a short message as a whole, is two small copies. */
        if (from == 0 && frame <= room - done && payload <= MN_MSG_PATTERN_BYTES) {
            frame_head(out + done, payload, slot);
            memcpy(out + done + MN_FRAME_HEAD_BYTES, mn_msg_pattern + MN_MSG_HEADER_BYTES,
                   payload - MN_MSG_HEADER_BYTES);
            done += frame;
            continue;
        }
        done += frame_part(out + done, room - done, payload, slot, from);
        from = 0;
    }
    return done;
}

uint32_t mn_frame_tx_consume(struct mn_frame_tx *tx, uint32_t bytes)
{
    uint64_t sent = (uint64_t)tx->head_sent + bytes;
    uint32_t frame = tx->payload_bytes + MN_FRAME_PREFIX_BYTES;
    uint32_t frames = (uint32_t)(sent / frame);
    tx->head_sent = (uint32_t)(sent % frame);
    tx->count -= frames;
    /* Starting over where it began keeps a short queue in the cache, and in few pages. */
    tx->head = tx->count == 0 ? 0 : (tx->head + frames) & tx->mask;
    return frames;
}

static bool length_ok(uint32_t length)
{
    return length >= MN_MSG_HEADER_BYTES && length <= MN_MSG_MAX_BYTES;
}

static uint32_t prefix_read(const uint8_t *head)
{
    uint32_t prefix;
    memcpy(&prefix, head, sizeof(prefix));
    return be32toh(prefix);
}

/* Checks payload bytes from `offset` on, unless an earlier one is known to be wrong. */
static void rx_check(struct mn_frame_rx *rx, const uint8_t *data, uint32_t length, uint32_t offset)
{
    if (!rx->verify || rx->wrong_at != MN_MSG_MATCH)
        return;
    rx->wrong_at = mn_msg_check(data, length, offset);
    if (rx->wrong_at != MN_MSG_MATCH)
        rx->wrong_got = data[rx->wrong_at - offset];
}

/* One more byte of the prefix or the application header. */
static int rx_head_byte(struct mn_frame_rx *rx, uint8_t byte)
{
    rx->head[rx->seen++] = byte;
    if (rx->seen == MN_FRAME_PREFIX_BYTES) {
        rx->length = prefix_read(rx->head);
        if (!length_ok(rx->length))
            return -EPROTO;
    } else if (rx->seen == MN_FRAME_HEAD_BYTES) {
        rx->slot = mn_msg_slot_read(rx->head + MN_FRAME_PREFIX_BYTES);
        rx->wrong_at = MN_MSG_MATCH;
    }
    return 0;
}

/* A message that arrives in pieces. */
static int rx_next_slow(struct mn_frame_rx *rx, const uint8_t **at, const uint8_t *end)
{
    const uint8_t *p = *at;
    int rc = 0;
    while (p < end && rc == 0) {
        if (rx->seen < MN_FRAME_HEAD_BYTES) {
            rc = rx_head_byte(rx, *p++);
        } else {
            uint32_t missing = rx->length + MN_FRAME_PREFIX_BYTES - rx->seen;
            uint32_t part = (uint64_t)(end - p) < missing ? (uint32_t)(end - p) : missing;
            rx_check(rx, p, part, rx->seen - MN_FRAME_PREFIX_BYTES);
            rx->seen += part;
            p += part;
        }
        if (rx->seen >= MN_FRAME_HEAD_BYTES && rx->seen == rx->length + MN_FRAME_PREFIX_BYTES) {
            rx->seen = 0;
            rc = 1;
        }
    }
    *at = p;
    return rc;
}

int mn_frame_rx_next(struct mn_frame_rx *rx, const uint8_t **at, const uint8_t *end)
{
    const uint8_t *p = *at;
    if (rx->seen != 0 || end - p < (ptrdiff_t)MN_FRAME_HEAD_BYTES)
        return rx_next_slow(rx, at, end);
    uint32_t length = prefix_read(p);
    if (!length_ok(length)) {
        rx->length = length;
        return -EPROTO;
    }
    if (end - p - (ptrdiff_t)MN_FRAME_PREFIX_BYTES < (ptrdiff_t)length)
        return rx_next_slow(rx, at, end);
    p += MN_FRAME_PREFIX_BYTES;
    rx->length = length;
    rx->slot = mn_msg_slot_read(p);
    rx->wrong_at = MN_MSG_MATCH;
    rx_check(rx, p, length, 0);
    *at = p + length;
    return 1;
}
