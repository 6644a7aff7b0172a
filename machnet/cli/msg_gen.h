/* SPDX-License-Identifier: MIT */
/*
 * The hot loops of msg_gen over a channel. As with tcp_msg_gen, each run call goes on until a time
 * that the caller names, and nothing here prints.
 *
 * With a stack of its own thread the loop looks at the channel only. With a stepped one (`stack` is
 * given) it polls the engine too: one thread does everything, and no cache line travels between
 * cores on the way from the wire to the application and back.
 */
#ifndef MN_CLI_MSG_GEN_H
#define MN_CLI_MSG_GEN_H

#include "machnet/cli/msg_app.h"
#include "machnet/stack/host/host.h"

/* Replies that a server owes one peer that does not read; then it gives the peer up. */
#define MN_GEN_SERVER_OWED_MAX 65536u

struct mn_gen_config {
    struct mn_chan *chan;   /* stays the caller's, who leaves it alone during a run */
    struct mn_stack *stack; /* to be polled by the loop, or NULL: it has its own thread */
    uint64_t msgs_max;      /* client only; 0 is no limit */
    uint64_t rate_per_s;    /* client only: messages by the clock; 0: as fast as it goes */
    uint64_t spin_ns;       /* how long to look for work before sleeping; UINT64_MAX never sleeps */
    uint32_t msg_size;
    uint32_t window; /* client only */
    uint32_t flow;   /* client only: connected */
    bool verify;
};

struct mn_gen_client;

/* NULL when memory is short or the configuration is out of range. */
struct mn_gen_client *mn_gen_client_new(const struct mn_gen_config *config,
                                        struct mn_msg_stats *stats);
void mn_gen_client_free(struct mn_gen_client *client);
/* Sends and receives until `until_ns`, a signal, or *stop. Returns 0 then, 1 when every message
 * that had to be sent is answered, or negative errno (the fault says more). */
int mn_gen_client_run(struct mn_gen_client *client, uint64_t until_ns, const volatile int *stop);
/* From now on only waits for the replies to what is sent. */
void mn_gen_client_drain(struct mn_gen_client *client);
uint32_t mn_gen_client_in_flight(const struct mn_gen_client *client);
/* What ended the run, or the first wrong payload; kind MN_MSG_FAULT_NONE when there is none. */
struct mn_msg_fault mn_gen_client_fault(const struct mn_gen_client *client);
struct mn_msg_fault mn_gen_client_payload_fault(const struct mn_gen_client *client);

struct mn_gen_server;

/* As for the client. The channel's listeners are the caller's. */
struct mn_gen_server *mn_gen_server_new(const struct mn_gen_config *config,
                                        struct mn_msg_stats *stats);
void mn_gen_server_free(struct mn_gen_server *server);
/* Answers until `until_ns`, a signal, or *stop. Returns 0, or negative errno when it can't go on.
 */
int mn_gen_server_run(struct mn_gen_server *server, uint64_t until_ns, const volatile int *stop);
/* Takes one fault of a peer; false when there is none. */
bool mn_gen_server_fault(struct mn_gen_server *server, struct mn_msg_fault *fault);
/* How many faults were not kept since the last call. */
uint64_t mn_gen_server_untold(struct mn_gen_server *server);
/* All faults since the start but for wrong payloads, which the statistics count. */
uint64_t mn_gen_server_faults(const struct mn_gen_server *server);
/* Flows that live, or have something to be received. */
uint32_t mn_gen_server_open_conns(const struct mn_gen_server *server);

#endif
