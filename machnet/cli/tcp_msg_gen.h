/* SPDX-License-Identifier: MIT */
/*
 * The hot loops of tcp_msg_gen over POSIX sockets. Each run call goes on until a time that the
 * caller names and returns, so that the caller can report and look at its signals; nothing here
 * prints. Sockets come connected, or listening, from the caller.
 */
#ifndef MN_CLI_TCP_MSG_GEN_H
#define MN_CLI_TCP_MSG_GEN_H

#include "machnet/cli/msg_app.h"

/* Handed to one send or taken from one recv at most. */
#define MN_TCP_CHUNK_BYTES (256u << 10)
/* Requests that a server owes one peer before it stops reading from that peer. */
#define MN_TCP_SERVER_OWED_MAX 8192u

struct mn_tcp_config {
    int32_t fd; /* stays the caller's to close */
    uint32_t msg_size;
    uint32_t window;   /* client only */
    uint64_t msgs_max; /* client only; 0 is no limit */
    uint64_t spin_ns;  /* how long to look for work before sleeping; UINT64_MAX never sleeps */
    bool verify;
};

struct mn_tcp_client;

/* Makes `config->fd` non-blocking. NULL when memory is short or the configuration is out of range.
 */
struct mn_tcp_client *mn_tcp_client_new(const struct mn_tcp_config *config,
                                        struct mn_msg_stats *stats);
void mn_tcp_client_free(struct mn_tcp_client *client);
/* Sends and receives until `until_ns`, a signal, or *stop. Returns 0 then, 1 when every message
 * that had to be sent is answered, or negative errno (the fault says more). */
int mn_tcp_client_run(struct mn_tcp_client *client, uint64_t until_ns, const volatile int *stop);
/* From now on only waits for the replies to what is sent. */
void mn_tcp_client_drain(struct mn_tcp_client *client);
uint32_t mn_tcp_client_in_flight(const struct mn_tcp_client *client);
/* What ended the run, or the first wrong payload; kind MN_MSG_FAULT_NONE when there is none. */
struct mn_msg_fault mn_tcp_client_fault(const struct mn_tcp_client *client);
struct mn_msg_fault mn_tcp_client_payload_fault(const struct mn_tcp_client *client);

struct mn_tcp_server;

/* NULL with errno set. */
struct mn_tcp_server *mn_tcp_server_new(const struct mn_tcp_config *config,
                                        struct mn_msg_stats *stats);
/* Closes every connection. */
void mn_tcp_server_free(struct mn_tcp_server *server);
/* Serves until `until_ns`, a signal, or *stop. Returns 0, or negative errno when it can't go on. */
int mn_tcp_server_run(struct mn_tcp_server *server, uint64_t until_ns, const volatile int *stop);
/* Takes one fault of a peer off the queue; false when there is none. */
bool mn_tcp_server_fault(struct mn_tcp_server *server, struct mn_msg_fault *fault);
/* How many faults did not fit into the queue since the last call. */
uint64_t mn_tcp_server_untold(struct mn_tcp_server *server);
/* All faults since the start but for wrong payloads, which the statistics count. */
uint64_t mn_tcp_server_faults(const struct mn_tcp_server *server);
uint32_t mn_tcp_server_open_conns(const struct mn_tcp_server *server);

#endif
