/* SPDX-License-Identifier: MIT */
/* Breaks an engine from inside, so that tests can see that it is found. Compiled by
 * test_invariants.py. */
#include "machnet/stack/core/engine_int.h"

/* The connection with this local port, or NULL. */
static struct mn_tcb *find(const struct mn_engine *e, uint32_t lport)
{
    for (uint32_t i = 0; i < e->tcb_pool.high; i++) {
        if (e->tcbs[i].lport == lport && e->tcbs[i].state >= MN_TCP_ESTABLISHED) {
            return &e->tcbs[i];
        }
    }
    return NULL;
}

/* Adds `by` to a field; false: there is no such connection, or no such field. */
bool poke(struct mn_engine *e, uint32_t lport, const char *field, int64_t by)
{
    struct mn_tcb *t = find(e, lport);

    if (t == NULL) {
        return false;
    }
    const struct {
        const char *name;
        uint32_t *field;
    } fields[] = {
        {"snd_una", &t->snd_una},
        {"snd_nxt", &t->snd_nxt},
        {"snd_end", &t->snd_end},
        {"rcv_nxt", &t->rcv_nxt},
        {"rcv_adv", &t->rcv_adv},
        {"cwnd", &t->cc.cwnd},
        {"snd_wnd", &t->snd_wnd},
        {"sacked_bytes", &t->sacked_bytes},
        {"ooo_count", &t->ooo_count},
        {"half_open", &e->half_open},
        {"tcb_free", &e->tcb_pool.n_free},
        {"dirty_head", &e->dirty_head},
        {"slot", &t->slot},
        {"flags", &t->flags},
    };

    if (strcmp(field, "timers") == 0) { /* off */
        t->rtx_at = 0;
        return true;
    }
    for (uint32_t i = 0; i < MN_ARRAY_LEN(fields); i++) {
        if (strcmp(field, fields[i].name) == 0) {
            *fields[i].field += (uint32_t)by;
            return true;
        }
    }
    return false;
}
