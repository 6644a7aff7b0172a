/* SPDX-License-Identifier: MIT */
/*
 * An application's connection to a sidecar's controller: the protocol of ctrl.h from the client's
 * side. One connection serves a whole process; its calls may come from any thread, one at a time.
 *
 * In a process that was forked off, connection and channels are the parent's: the child's copies of
 * the sockets are closed at the fork, and its calls answer -ECHILD.
 */
#ifndef MN_CLIENT_H
#define MN_CLIENT_H

#include "machnet/shim/ctrl.h"
#include "machnet/stack/host/host.h"

/* How long the controller may take for an answer. */
#define MN_CLIENT_TIMEOUT_MS 5000u

struct mn_client;

/* The path that NULL stands for: the environment's MACHNET_SOCKET, else MN_CTRL_SOCKET. */
const char *mn_client_path(const char *path);

/* Connects and says hello. app_name NULL: the program's name. On failure `why` (which may be NULL)
 * gets a sentence for people. -ECONNREFUSED: nobody is there; -EACCES; -EPROTO: sidecar and
 * application are of different versions; -ETIMEDOUT; -ENAMETOOLONG; what else the sidecar says. */
int mn_client_open(struct mn_client **out, const char *path, const char *app_name, char *why,
                   uint32_t why_bytes);
/* A new channel. geo: wishes, NULL or a zero field is the sidecar's choice; the geometry that came
 * of it goes to *geo_out, unless that is NULL. -EPIPE: the connection is gone (another one may be
 * opened). */
int mn_client_attach(struct mn_client *c, const struct mn_chan_geometry *geo, uint64_t spin_ns,
                     struct mn_chan **out, uint32_t *channel_id, struct mn_chan_geometry *geo_out);
/* After mn_chan_close of the channel; linger_ms as there. 0, -ENOENT, -EPIPE. */
int mn_client_detach(struct mn_client *c, uint32_t channel_id, uint32_t linger_ms);
/* Ends the connection and with it all its channels, as the process's end would. NULL is fine. */
void mn_client_close(struct mn_client *c);

/* Whether the sidecar still holds the other end. */
bool mn_client_alive(struct mn_client *c);
/* A sentence about the last failure of an attach or detach. */
void mn_client_why(struct mn_client *c, char *why, uint32_t why_bytes);
/* The socket, to look at; -1 in a forked child. */
int mn_client_fd(const struct mn_client *c);
/* How often this process has been forked off since the library was loaded: what was made under
 * another number is another process's. */
uint32_t mn_client_forks(void);

#endif
