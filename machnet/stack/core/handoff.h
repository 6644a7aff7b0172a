/* SPDX-License-Identifier: MIT */
/*
 * Several engines with one address: frames of flows that live on another engine. The engine that
 * receives such a frame gives a copy to one that may know the flow, which goes on from there; each
 * frame carries the set of engines that have looked at it, so that it moves n - 1 times at most.
 * docs/design/several-engines.md says who owns a flow.
 */
#ifndef MN_HANDOFF_H
#define MN_HANDOFF_H

#include "engine_int.h"

/* Addresses of a flow, seen from here; host byte order. */
struct mn_tuple {
    uint32_t laddr, raddr;
    uint16_t lport, rport;
    uint8_t proto; /* MN_IPPROTO_... */
};

/* The functions below are about the frame that is being received (mn_engine_input). */

/* Nothing here serves the flow: true when another engine will look at the frame, or the way there
 * is full and the frame is lost; then the caller returns without an answer. False: all engines have
 * looked at it, so it is for the caller to refuse. */
bool mn_handoff(struct mn_engine *e, const struct mn_tuple *flow);
/* The frame opens a flow that is unknown here but could be accepted here: true as above when
 * another engine seems to have that flow already; false: accept it. */
bool mn_handoff_opening(struct mn_engine *e, const struct mn_tuple *flow);
/* A copy for each other engine, which must not answer it; once for each frame from the wire. */
void mn_handoff_all(struct mn_engine *e);
/* The frame came from mn_handoff_all: learn from it, don't answer. */
bool mn_handoff_is_copy(const struct mn_engine *e);

/* What this engine has: tells the others where to ask first. Call when a flow enters its table, and
 * when it leaves. */
void mn_owner_set(struct mn_engine *e, const struct mn_tuple *flow);
void mn_owner_clear(struct mn_engine *e, const struct mn_tuple *flow);

/* The engine that a flow with this local port is for, as every engine computes it. */
uint32_t mn_flow_home(const struct mn_engine *e, const struct mn_tuple *flow);

#endif
