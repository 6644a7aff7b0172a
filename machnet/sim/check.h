/* SPDX-License-Identifier: MIT */
/*
 * Invariants of a simulated network, checked while it runs:
 *
 *   - within each engine: connections, queues, pools, lists and timers agree (mn_check_engine); of
 * a connection that has sent since the last look, also that nothing went back which may not, and
 *     that what it has in flight is within its windows;
 *   - of the frames that leave an engine: bytes sent again are those that were sent first, and not
 *     acknowledged yet; acknowledgements and the right edge of the window never go back; sequence
 *     numbers leave no gap; of the message transport, also what its packets owe to those that have
 *     arrived;
 *   - between applications: what one side is given is what the other side gave, from the first byte
 *     on, in order and once.
 *
 * One mn_check serves a network. Nodes are its numbers. The first violation is described in
 * mn_check_text, answered once with -EPROTO (what an application did wrong, by the next pass), and
 * ends the checks: so the network can still be taken down.
 */
#ifndef MN_SIM_CHECK_H
#define MN_SIM_CHECK_H

#include "machnet/stack/core/engine.h"

#include <stddef.h>

struct mn_check;

/* All tables of an engine, between two calls into it: 0, or -EPROTO with the connection and the
 * rule in `text`. Changes nothing. */
int mn_check_engine(struct mn_engine *e, char *text, size_t size);

/* flows_max: connections that are followed at once, others are not checked; 0: 65536. NULL: no
 * memory. */
struct mn_check *mn_check_new(uint32_t flows_max);
void mn_check_free(struct mn_check *c);

/* A frame has left the node's engine, as it is before any link. 0 or -EPROTO. */
int mn_check_frame(struct mn_check *c, uint32_t node, const uint8_t *frame, uint32_t len,
                   uint64_t now_ns);
/* A frame is given to the node's engine, for what the message transport may acknowledge. */
void mn_check_arrived(struct mn_check *c, uint32_t node, const uint8_t *frame, uint32_t len);
/* A pass of the node's engine is over. Looks at the connections that have sent in it, and, as often
 * as the cost of it allows, at everything. 0 or -EPROTO. */
int mn_check_pass(struct mn_check *c, uint32_t node, struct mn_engine *e, uint64_t now_ns);
/* All tables of the engine, now. 0 or -EPROTO. */
int mn_check_now(struct mn_check *c, uint32_t node, struct mn_engine *e, uint64_t now_ns);
/* The node has crashed: its connections are no more. */
void mn_check_forget(struct mn_check *c, uint32_t node);

/* An application has given its connection bytes to send; another was given received ones. message:
 * they are one message of a framed connection. id tells connections between the same addresses
 * apart, never 0. Where both ends tell, from the first byte on, what is taken is held against what
 * was given. 0; of a violation the next pass tells. */
struct mn_check_conn {
    uint32_t laddr, raddr;
    uint16_t lport, rport;
    uint32_t udp; /* 1: of the message transport over UDP; 0: TCP */
};
int mn_check_given(struct mn_check *c, const struct mn_check_conn *conn, uint64_t id,
                   const void *bytes, uint64_t len, bool message);
int mn_check_taken(struct mn_check *c, const struct mn_check_conn *conn, uint64_t id,
                   const void *bytes, uint64_t len, bool message, uint64_t now_ns);

/* A frame that no engine has sent joins the network: what the connection carries from now on may be
 * anybody's, and is not held against what its application gave. */
void mn_check_foreign(struct mn_check *c, const uint8_t *frame, uint32_t len);

/* The first violation, "" if there was none: "at 1.234567890 s: node 0: CONNECTION: RULE: ...". */
const char *mn_check_text(const struct mn_check *c);

struct mn_check_stats {
    uint64_t frames;     /* seen */
    uint64_t compared;   /* bytes sent again that were held against the first ones */
    uint64_t looks;      /* at single connections */
    uint64_t walks;      /* over all tables of an engine */
    uint64_t delivered;  /* bytes held against what the other side gave */
    uint64_t unfollowed; /* frames of connections that there was no room for */
    uint64_t flows_live;
    uint64_t mem_bytes; /* of kept bytes */
};
void mn_check_get_stats(const struct mn_check *c, struct mn_check_stats *out);

#endif
