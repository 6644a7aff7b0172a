/* SPDX-License-Identifier: MIT */
#include "machnet/cli/msg_app.h"

#include <errno.h>
#include <stdlib.h>

uint8_t mn_msg_pattern[MN_MSG_PATTERN_PERIOD + MN_MSG_PATTERN_BYTES];

__attribute__((constructor)) static void mn_msg_pattern_make(void)
{
    for (uint32_t i = 0; i < sizeof(mn_msg_pattern); i++)
        mn_msg_pattern[i] = (uint8_t)i;
}

void mn_msg_fill(uint8_t *data, uint32_t length, uint32_t offset)
{
    while (length > 0) {
        uint32_t part = length < MN_MSG_PATTERN_BYTES ? length : MN_MSG_PATTERN_BYTES;
        memcpy(data, mn_msg_pattern + offset % MN_MSG_PATTERN_PERIOD, part);
        data += part;
        offset += part;
        length -= part;
    }
}

uint32_t mn_msg_check(const uint8_t *data, uint32_t length, uint32_t offset)
{
    if (offset < MN_MSG_HEADER_BYTES) {
        uint32_t skip = MN_MSG_HEADER_BYTES - offset;
        if (length <= skip)
            return MN_MSG_MATCH;
        data += skip;
        offset += skip;
        length -= skip;
    }
    while (length > 0) {
        uint32_t part = length < MN_MSG_PATTERN_BYTES ? length : MN_MSG_PATTERN_BYTES;
        if (memcmp(data, mn_msg_pattern + offset % MN_MSG_PATTERN_PERIOD, part) != 0)
            break;
        data += part;
        offset += part;
        length -= part;
    }
    if (length == 0)
        return MN_MSG_MATCH;
    while (*data == (uint8_t)offset) {
        data++;
        offset++;
    }
    return offset;
}

void mn_msg_stats_reset(struct mn_msg_stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    mn_hist_reset(&stats->rtt);
}

void mn_msg_stats_move(struct mn_msg_stats *total, struct mn_msg_stats *interval)
{
    total->tx_msgs += interval->tx_msgs;
    total->tx_bytes += interval->tx_bytes;
    total->rx_msgs += interval->rx_msgs;
    total->rx_bytes += interval->rx_bytes;
    total->payload_faults += interval->payload_faults;
    mn_hist_merge(&total->rtt, &interval->rtt);
    mn_msg_stats_reset(interval);
}

int mn_msg_client_open(struct mn_msg_client *client, struct mn_msg_stats *stats, uint32_t msg_size,
                       uint32_t window, uint64_t msgs_max, bool verify)
{
    memset(client, 0, sizeof(*client));
    if (msg_size < MN_MSG_HEADER_BYTES || msg_size > MN_MSG_MAX_BYTES)
        return -EINVAL;
    if (window == 0 || window > MN_MSG_WINDOW_MAX)
        return -EINVAL;
    client->sent_ns = malloc(window * sizeof(*client->sent_ns));
    client->idle = malloc(window * sizeof(*client->idle));
    if (client->sent_ns == NULL || client->idle == NULL) {
        mn_msg_client_close(client);
        return -ENOMEM;
    }
    client->stats = stats;
    client->window = window;
    client->msg_size = msg_size;
    client->verify = verify;
    client->msgs_left = msgs_max == 0 ? UINT64_MAX : msgs_max;
    client->idle_count = window;
    for (uint32_t i = 0; i < window; i++) {
        client->sent_ns[i] = MN_MSG_SLOT_IDLE;
        client->idle[i] = window - 1 - i; /* slot 0 is on top */
    }
    return 0;
}

void mn_msg_client_close(struct mn_msg_client *client)
{
    free(client->sent_ns);
    free(client->idle);
    client->sent_ns = NULL;
    client->idle = NULL;
}

int mn_msg_client_reply(struct mn_msg_client *client, uint64_t slot, uint32_t length,
                        uint32_t wrong_at, uint8_t got, uint64_t now_ns)
{
    if (slot >= client->window || client->sent_ns[slot] == MN_MSG_SLOT_IDLE) {
        client->fatal = (struct mn_msg_fault){
            .kind = MN_MSG_FAULT_SLOT,
            .length = length,
            .slot = slot,
        };
        return -EPROTO;
    }
    struct mn_msg_stats *stats = client->stats;
    if (client->verify && wrong_at != MN_MSG_MATCH) {
        if (client->payload.kind == MN_MSG_FAULT_NONE)
            client->payload = (struct mn_msg_fault){
                .kind = MN_MSG_FAULT_PAYLOAD,
                .length = length,
                .slot = slot,
                .offset = wrong_at,
                .expected = (uint8_t)wrong_at,
                .got = got,
            };
        stats->payload_faults++;
    }
    stats->rx_msgs++;
    stats->rx_bytes += length;
    mn_hist_record(&stats->rtt, now_ns - client->sent_ns[slot]);
    client->sent_ns[slot] = MN_MSG_SLOT_IDLE;
    client->idle[client->idle_count++] = (uint32_t)slot;
    return 0;
}
