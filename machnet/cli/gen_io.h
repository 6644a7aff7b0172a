/* SPDX-License-Identifier: MIT */
/* What msg_gen's client and server share: the channel, reading a message in place, and the loop. */
#ifndef MN_CLI_GEN_IO_H
#define MN_CLI_GEN_IO_H

#include "machnet/cli/msg_gen.h"

/* Messages per turn: then the engine gets its turn, and others theirs. */
#define GEN_TURN_MSGS 256u

struct gen_io {
    struct mn_app *app;
    struct mn_chan *chan;
    struct mn_stack *stack; /* NULL: its thread polls it */
    uint64_t spin_ns;
    uint64_t wake_ns; /* a turn has something to do then; UINT64_MAX: it waits for the channel */
    uint32_t msg_size;
    bool verify;
    uint8_t *out;           /* a message of msg_size bytes with the pattern in it */
    struct mn_app_iov *iov; /* the pieces of a message that spans buffers */
};

/* What was found in a message. */
struct gen_msg {
    uint64_t slot;
    uint32_t wrong_at; /* as mn_msg_check() has it */
    uint8_t got;
};

/* `app` is a lane of the channel. 0, -EINVAL (msg_size) or -ENOMEM; closed either way with
 * gen_io_close. */
int gen_io_open(struct gen_io *io, const struct mn_gen_config *config, struct mn_app *app);
void gen_io_close(struct gen_io *io);
/* Reads the message at the head of the channel, which has a header at least. */
void gen_io_read(const struct gen_io *io, uint32_t len, struct gen_msg *msg);

static inline int gen_io_send(struct gen_io *io, uint32_t flow, uint64_t slot)
{
    mn_msg_slot_write(io->out, slot);
    return mn_app_send_nopub(io->app, flow, io->out, io->msg_size);
}

/* What a turn found: negative errno ends the run, as does GEN_FINISHED. */
enum { GEN_IDLE = 0, GEN_WORKED = 1, GEN_FINISHED = 2 };
typedef int (*gen_turn_fn)(void *ctx);

/* Takes turns until `until_ns`, a signal or *stop (0), until a turn says GEN_FINISHED (1), or until
 * something fails (negative errno). */
int gen_io_run(struct gen_io *io, gen_turn_fn turn, void *ctx, uint64_t until_ns,
               const volatile int *stop);

#endif
