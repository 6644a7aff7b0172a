/* SPDX-License-Identifier: MIT */
/*
 * The controller's protocol: how an application and a sidecar talk over the UNIX socket.
 *
 * The socket is of type SOCK_SEQPACKET: one packet is one request or one reply, so nothing has to
 * be put together again. A connection stands for one application process; when it closes, for
 * whatever reason, the sidecar ends the channels that were attached through it. Requests are
 * answered in order, each by one reply with its `id`.
 *
 * The first request is HELLO; anything else before it, a packet of the wrong size or another magic
 * ends the connection. All fields are in host byte order: both ends are on one machine.
 */
#ifndef MN_CTRL_H
#define MN_CTRL_H

#include <assert.h>
#include <stdint.h>

#include "machnet/stack/core/channel.h"

#define MN_CTRL_MAGIC         0x4c52544eu /* "NTRL" in memory */
#define MN_CTRL_VERSION       1u
#define MN_CTRL_SOCKET        "/var/run/machnet/machnet_ctrl.sock"
#define MN_CTRL_NAME_BYTES    64u
#define MN_CTRL_WHY_BYTES     160u
#define MN_CTRL_PAYLOAD_BYTES 16384u /* largest JSON text of an ADMIN request */

enum mn_ctrl_op {
    MN_CTRL_HELLO = 1,  /* name: what the application calls itself. The sidecar takes the process,
                           user and group from the kernel, not from here */
    MN_CTRL_ATTACH = 2, /* geo: wishes, a zero field is the sidecar's choice; flags. The reply
                           carries descriptors: memfd, wake, then one kick per lane */
    MN_CTRL_DETACH = 3, /* channel, value = linger in ms (MN_LINGER_DEFAULT) */
    MN_CTRL_ADMIN = 4, /* a JSON object of payload_bytes follows this struct in the same packet. The
                          reply's descriptor is a memfd with the JSON answer (value: its bytes) */
};

struct mn_ctrl_req {
    uint32_t magic;
    uint16_t version; /* of the protocol; the controller refuses what it does not speak, and says
                         what it does */
    uint16_t op;
    uint32_t id; /* chosen by the application */
    uint32_t channel;
    uint32_t value;
    uint32_t payload_bytes;
    uint32_t chan_version; /* HELLO: MN_CHAN_VERSION of the application's build */
    uint32_t flags;        /* 0 */
    struct mn_chan_geometry geo;
    char name[MN_CTRL_NAME_BYTES]; /* HELLO; ends with a zero byte */
    uint8_t pad[8];
};
static_assert(sizeof(struct mn_ctrl_req) == 128, "controller request");

struct mn_ctrl_rep {
    uint32_t magic;
    uint16_t version;
    uint16_t op;
    uint32_t id;
    int32_t status; /* 0 or a negative errno: -EPROTO (versions differ), -EACCES (not on the allow
                       list), -EDQUOT (quota), -EINVAL (the request), -ENOMEM, -ENOENT (channel) */
    uint32_t channel;
    uint32_t n_lanes;
    uint32_t value;
    uint32_t n_fds; /* descriptors that come with this reply */
    struct mn_chan_geometry geo;
    uint32_t chan_version;
    uint32_t pid;                /* the sidecar's */
    char why[MN_CTRL_WHY_BYTES]; /* for people, when status is not 0; ends with a zero byte */
    uint8_t pad[32];
};
static_assert(sizeof(struct mn_ctrl_rep) == 256, "controller reply");

#endif
