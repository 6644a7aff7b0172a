/* SPDX-License-Identifier: MIT */
/*
 * A sidecar for the fuzzer of the client library, in the thread of the application: a controller at
 * the other end of a real UNIX socket, and the engines' end of the channels it hands out. Calls of
 * the library that would wait come here instead (the linker's --wrap): time is virtual, what the
 * controller says is there when the request has been sent, and engines go on when the application
 * sleeps. The input says what they say and do; nothing of it has to make sense.
 */
#ifndef FZ_SIDECAR_H
#define FZ_SIDECAR_H

#include "fz_in.h"
#include "fz_nic.h"
#include "machnet/shim/ctrl.h"

#define FZ_MEMS      6u /* channels handed out for one input */
#define FZ_LANES_APP 4u

/* The engines' end of a channel. */
struct fz_mem {
    uint8_t *region;
    uint64_t bytes;
    struct mn_chan_geometry geo;
    struct mn_lane_layout layout;
    int wake;
    uint32_t flows[FZ_LANES_APP]; /* the next slot of a flow that is made in order */
};

struct fz_sidecar {
    struct fz_in *in;
    bool honest; /* the controller; the engines never are */
    int conn;
    bool flood;      /* replies that nobody asked for, without end */
    uint64_t now_ns; /* virtual */
    uint64_t end_ns; /* when the call under way must be over */
    uint32_t calls;  /* of the system, by the call under way */
    uint32_t n_mems;
    struct fz_mem mems[FZ_MEMS];
};

extern struct fz_sidecar fz_sidecar;
/* For each input: begin, and close what there is. */
void fz_sidecar_begin(struct fz_in *in, bool honest);
void fz_sidecar_end(void);
/* Before each call of the library: it may take so long, in virtual time. */
void fz_sidecar_call(uint32_t seconds);

/* fz_engines.c: one thing that an engine of the channel does. */
void fz_engines_act(struct fz_mem *m, struct fz_in *in);
/* Answers to the commands that were sent, as an engine would give them. */
void fz_engines_answer(struct fz_mem *m);

#endif
