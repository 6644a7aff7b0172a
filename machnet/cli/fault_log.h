/* SPDX-License-Identifier: MIT */
/* What a server's peers did wrong, until the caller has told people: a few faults in full, the rest
 * as a number. */
#ifndef MN_CLI_FAULT_LOG_H
#define MN_CLI_FAULT_LOG_H

#include "machnet/cli/msg_app.h"

#define MN_FAULT_LOG_MAX 16u

struct mn_fault_log {
    uint64_t total;  /* all since the start but for wrong payloads, which the statistics count */
    uint64_t untold; /* did not fit since someone asked last */
    uint32_t head;
    uint32_t count;
    struct mn_msg_fault faults[MN_FAULT_LOG_MAX];
};

static inline void mn_fault_log_put(struct mn_fault_log *log, const struct mn_msg_fault *fault)
{
    if (fault->kind != MN_MSG_FAULT_PAYLOAD)
        log->total++;
    if (log->count == MN_FAULT_LOG_MAX) {
        log->untold++;
        return;
    }
    log->faults[(log->head + log->count++) % MN_FAULT_LOG_MAX] = *fault;
}

/* The oldest one that was not taken yet; false when there is none. */
static inline bool mn_fault_log_take(struct mn_fault_log *log, struct mn_msg_fault *fault)
{
    if (log->count == 0)
        return false;
    *fault = log->faults[log->head];
    log->head = (log->head + 1) % MN_FAULT_LOG_MAX;
    log->count--;
    return true;
}

static inline uint64_t mn_fault_log_untold(struct mn_fault_log *log)
{
    uint64_t untold = log->untold;
    log->untold = 0;
    return untold;
}

#endif
