/* SPDX-License-Identifier: MIT */
/* An application that does what the input says, and knows which bytes it has sent and must receive
 * (fz_content). */
#ifndef FZ_APP_H
#define FZ_APP_H

#include "fz_peer.h"

#define FZ_FLOWS 8u

struct fz_flow {
    uint32_t id; /* MN_FLOW_NONE: unused */
    uint32_t tx_off, tx_msg, rx_off, rx_msg;
    uint16_t local_port, remote_port;
    bool shut, closed;
};

struct fz_app {
    struct fz_host *h;
    uint32_t chan;
    bool mnp; /* every flow speaks the message protocol */
    struct fz_flow flows[FZ_FLOWS];
    int64_t tokens[4];
    uint32_t n_tokens;
    uint32_t listeners[FZ_PORT_COUNT]; /* ids by port, 0: not listening */
    /* Whether what came on a flow can be known: false for peers whose bytes the input chose. */
    bool (*known)(void *ctx, uint16_t local_port, uint16_t remote_port, uint32_t remote_ip);
    void *ctx;
    uint64_t received; /* bytes and messages, for "is it alive" */
};

void fz_app_open(struct fz_app *a, struct fz_host *h, uint32_t chan);
struct mn_app *fz_app_chan(const struct fz_app *a);
/* The record of a flow, made if it is new; NULL without room. */
struct fz_flow *fz_flow_of(struct fz_app *a, uint32_t id);
void fz_app_listen(struct fz_app *a, uint32_t port_index, uint32_t backlog);
void fz_app_unlisten(struct fz_app *a, uint32_t port_index);
void fz_app_connect(struct fz_app *a, uint32_t ip, uint16_t port, uint16_t local_port,
                    uint32_t timeout_ms);
/* Fetches answers and accepts what waits. */
void fz_app_results(struct fz_app *a);
/* Streams: up to len bytes; framed: the next message. */
int64_t fz_app_send(struct fz_app *a, struct fz_flow *f, uint32_t len, uint32_t flags);
/* Reads up to `most` bytes of each stream, or as many messages; checks them. */
void fz_app_receive(struct fz_app *a, uint32_t most);
void fz_app_skip(struct fz_app *a);
void fz_app_shutdown(struct fz_app *a, struct fz_flow *f);
void fz_app_close(struct fz_app *a, struct fz_flow *f, uint32_t linger_ms);

#endif
