/* SPDX-License-Identifier: MIT */
/* One lwIP instance with its application, and the in-memory wire between two of them.
 *
 * lwIP keeps its state in globals, so each instance is a copy of the same object file with all
 * symbols made local but one: its table of functions. */
#ifndef MN_LWIP_HOST_H
#define MN_LWIP_HOST_H

#include <stdbool.h>
#include <stdint.h>

enum mn_lwip_work {
    MN_LWIP_REQUEST, /* the client sends messages, the server echoes them */
    MN_LWIP_BULK,    /* the client sends without pause, the server reads */
};

struct mn_lwip_config {
    enum mn_lwip_work work;
    bool client;
    bool reply_in_callback; /* write from lwIP's receive callback, not once per pass */
    uint32_t msg_bytes;
    uint32_t window_msgs;
    uint32_t burst_frames; /* frames taken from the wire in one pass */
    uint32_t writes_per_pass;
};

struct mn_lwip_counts {
    uint64_t msgs; /* completed round trips (client), or bulk bytes read / msg_bytes (server) */
    uint64_t frames_sent;
    uint64_t frames_lost; /* the wire was full: must stay 0 */
    uint64_t errors;      /* wrong payload, or a connection that ended */
};

struct mn_lwip_wire;

struct mn_lwip_ops {
    const char *version;
    struct mn_lwip_wire *(*wire_open)(void);
    void (*open)(const struct mn_lwip_config *config, struct mn_lwip_wire *transmit,
                 struct mn_lwip_wire *receive);
    bool (*connected)(void);
    void (*pass)(uint32_t now_ms);
    struct mn_lwip_counts (*counts)(void);
};

extern const struct mn_lwip_ops mn_lwip_client_ops;
extern const struct mn_lwip_ops mn_lwip_server_ops;

#endif
