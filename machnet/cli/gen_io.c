/* SPDX-License-Identifier: MIT */
#include "machnet/cli/gen_io.h"

#include <errno.h>
#include <stdlib.h>

/* The most pieces a message can have: buffers have 512 bytes at least. */
#define PIECES_MAX (MN_MSG_MAX_BYTES / 512u)

int gen_io_open(struct gen_io *io, const struct mn_gen_config *config, struct mn_app *app)
{
    *io = (struct gen_io){
        .app = app,
        .chan = config->chan,
        .stack = config->stack,
        .spin_ns = config->spin_ns,
        .wake_ns = UINT64_MAX,
        .msg_size = config->msg_size,
        .verify = config->verify,
    };
    if (config->msg_size < MN_MSG_HEADER_BYTES || config->msg_size > MN_MSG_MAX_BYTES)
        return -EINVAL;
    io->out = malloc(config->msg_size);
    io->iov = malloc(PIECES_MAX * sizeof(*io->iov));
    if (io->out == NULL || io->iov == NULL)
        return -ENOMEM;
    mn_msg_fill(io->out, config->msg_size, 0);
    return 0;
}

void gen_io_close(struct gen_io *io)
{
    free(io->out);
    free(io->iov);
}

static void read_pieces(const struct gen_io *io, struct gen_msg *msg)
{
    uint32_t n = mn_app_pieces(io->app, io->iov, PIECES_MAX);
    uint32_t offset = 0;

    for (uint32_t i = 0; i < n && msg->wrong_at == MN_MSG_MATCH; i++) {
        const uint8_t *data = io->iov[i].base;
        uint32_t length = (uint32_t)io->iov[i].len;

        msg->wrong_at = mn_msg_check(data, length, offset);
        if (msg->wrong_at != MN_MSG_MATCH)
            msg->got = data[msg->wrong_at - offset];
        offset += length;
    }
}

void gen_io_read(const struct gen_io *io, uint32_t len, struct gen_msg *msg)
{
    struct mn_app_iov first = {0};
    uint32_t pieces = mn_app_pieces(io->app, &first, 1);
    const uint8_t *data = first.base;

    msg->slot = mn_msg_slot_read(data);
    msg->wrong_at = MN_MSG_MATCH;
    msg->got = 0;
    if (!io->verify)
        return;
    /* A short message that is right, which is the usual case, costs one comparison. */
    if (MN_LIKELY(pieces == 1 && len <= MN_MSG_PATTERN_BYTES) &&
        MN_LIKELY(memcmp(data + MN_MSG_HEADER_BYTES, mn_msg_pattern + MN_MSG_HEADER_BYTES,
                         len - MN_MSG_HEADER_BYTES) == 0))
        return;
    if (pieces > 1) {
        read_pieces(io, msg);
        return;
    }
    msg->wrong_at = mn_msg_check(data, len, 0);
    if (msg->wrong_at != MN_MSG_MATCH)
        msg->got = data[msg->wrong_at];
}

/* While there is work the clock is read once in so many turns: it costs what a small message does.
 */
#define TURNS_BLIND 16u
/* A sleeper that wakes this much before a message is due is in time. */
#define EARLY_NS UINT64_C(100000)

/* How long a turn has nothing to do unless something comes in; 0: not at all. */
static uint64_t idle_time(const struct gen_io *io, uint64_t now_ns, uint64_t until_ns)
{
    uint64_t early_ns = io->spin_ns > 0 ? EARLY_NS : 0;
    uint64_t wake_ns = io->wake_ns;

    if (wake_ns != UINT64_MAX)
        wake_ns -= early_ns < wake_ns ? early_ns : wake_ns;
    if (wake_ns > until_ns)
        wake_ns = until_ns;
    return wake_ns > now_ns ? wake_ns - now_ns : 0;
}

int gen_io_run(struct gen_io *io, gen_turn_fn turn, void *ctx, uint64_t until_ns,
               const volatile int *stop)
{
    uint64_t idle_since_ns = 0; /* 0: not idle */
    uint32_t turns = 0;
    for (;;) {
        int64_t polled = io->stack != NULL ? mn_stack_poll(io->stack, 0) : 0;
        if (polled < 0)
            return (int)polled;
        int found = turn(ctx);
        if (found < 0)
            return found;
        if (found == GEN_FINISHED)
            return 1;
        bool worked = polled > 0 || found == GEN_WORKED;
        if (worked && ++turns % TURNS_BLIND != 0) {
            idle_since_ns = 0;
            continue;
        }
        uint64_t now_ns = mn_msg_now_ns();
        if (now_ns >= until_ns || (stop != NULL && *stop != 0))
            return 0;
        if (worked) {
            idle_since_ns = 0;
            continue;
        }
        if (idle_since_ns == 0)
            idle_since_ns = now_ns;
        mn_chan_look(io->chan);
        uint64_t idle_ns = idle_time(io, now_ns, until_ns);
        if (idle_ns == 0 || now_ns - idle_since_ns < io->spin_ns) {
            if (io->stack == NULL)
                mn_msg_relax(io->spin_ns);
            continue;
        }
        int rc = mn_chan_wait(io->chan, idle_ns);
        if (rc < 0)
            return rc == -EINTR ? 0 : rc;
        idle_since_ns = 0;
    }
}
