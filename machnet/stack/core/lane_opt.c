/* SPDX-License-Identifier: MIT */
/* Options of a flow (enum mn_opt): what an application may set and read. */
#include "engine_int.h"

static int set_keepalive(struct mn_engine *e, struct mn_tcb *t, uint64_t on)
{
    if (on == 0) {
        t->flags &= ~MN_TF_KEEPALIVE;
        t->keep_at = 0;
        return 0;
    }
    t->flags |= MN_TF_KEEPALIVE;
    mn_tcp_keep_touch(e, t);
    return 0;
}

static int set_flag(struct mn_engine *e, struct mn_tcb *t, uint32_t flag, uint64_t on)
{
    if (on != 0) {
        t->flags |= flag;
    } else {
        t->flags &= ~flag;
    }
    mn_tcp_mark_dirty(e, t);
    return 0;
}

static bool within(uint64_t v, uint64_t low, uint64_t high)
{
    return v >= low && v <= high;
}

static int set_number(struct mn_engine *e, struct mn_tcb *t, uint32_t opt, uint64_t v)
{
    switch (opt) {
    case MN_OPT_KEEPIDLE_S:
        if (!within(v, 1, 1u << 20)) {
            return -EINVAL;
        }
        t->keep_idle_s = (uint32_t)v;
        mn_tcp_keep_touch(e, t);
        return 0;
    case MN_OPT_KEEPINTVL_S:
        if (!within(v, 1, 1u << 20)) {
            return -EINVAL;
        }
        t->keep_interval_s = (uint32_t)v;
        return 0;
    case MN_OPT_KEEPCNT:
        if (!within(v, 1, 255)) {
            return -EINVAL;
        }
        t->keep_count = (uint16_t)v;
        return 0;
    case MN_OPT_USER_TIMEOUT_MS:
        if (v > UINT32_MAX) {
            return -EINVAL;
        }
        if (v == 0) {
            v = t->mcb == MN_NIL ? e->cfg.user_timeout_ms : e->cfg.mnp_user_timeout_ms;
        }
        t->user_timeout_ms = (uint32_t)v;
        return 0;
    case MN_OPT_RCVBUF:
        if (!within(v, 2048, 1u << 30)) {
            return -EINVAL;
        }
        t->rcv_buf = (uint32_t)v;
        mn_tcp_space(e, t);
        return 0;
    case MN_OPT_DSCP:
        if (v > 63) {
            return -EINVAL;
        }
        t->tos = (uint8_t)(v << 2);
        return 0;
    case MN_OPT_TTL:
        if (!within(v, 1, 255)) {
            return -EINVAL;
        }
        t->ttl = (uint8_t)v;
        return 0;
    case MN_OPT_MAXSEG:
        if (!within(v, 88, 65495)) {
            return -EINVAL;
        }
        if (t->mcb != MN_NIL) {
            return -ENOPROTOOPT; /* messages that wait are cut already */
        }
        t->maxseg = (uint16_t)v;
        if (t->mss_opt > v) {
            mn_tcp_set_mss(e, t, (uint32_t)v);
        }
        return 0;
    case MN_OPT_LINGER_MS:
        if (v > UINT32_MAX) {
            return -EINVAL;
        }
        t->linger_ms = (uint32_t)v;
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

int mn_lane_setopt(struct mn_engine *e, struct mn_lane *l, uint32_t flow, uint32_t opt, uint64_t v)
{
    struct mn_slot *s = mn_lane_slot(l, flow);

    if (opt == MN_OPT_ISN && flow == MN_FLOW_NONE) {
        if (!e->cfg.isn_option) {
            return -ENOPROTOOPT;
        }
        e->isn_is_forced = v <= UINT32_MAX;
        e->isn_forced = (uint32_t)v;
        return 0;
    }
    if (s == NULL || s->tcb == MN_NIL) {
        return -ENOTCONN;
    }
    struct mn_tcb *t = mn_tcb_at(e, s->tcb);
    switch (opt) {
    case MN_OPT_NODELAY:
        return set_flag(e, t, MN_TF_NODELAY, v);
    case MN_OPT_QUICKACK:
        return set_flag(e, t, MN_TF_QUICKACK, v);
    case MN_OPT_KEEPALIVE:
        return set_keepalive(e, t, v);
    default:
        return set_number(e, t, opt, v);
    }
}

int mn_lane_getopt(struct mn_engine *e, struct mn_lane *l, uint32_t flow, uint32_t opt, uint64_t *v)
{
    struct mn_slot *s = mn_lane_slot(l, flow);

    if (s == NULL) {
        return -ENOTCONN;
    }
    if (s->tcb == MN_NIL) {
        *v = MN_TCP_CLOSED;
        return opt == MN_OPT_STATE ? 0 : -ENOTCONN;
    }
    const struct mn_tcb *t = mn_tcb_at(e, s->tcb);
    const uint64_t values[] = {
        [MN_OPT_NODELAY] = (t->flags & MN_TF_NODELAY) != 0,
        [MN_OPT_KEEPALIVE] = (t->flags & MN_TF_KEEPALIVE) != 0,
        [MN_OPT_KEEPIDLE_S] = t->keep_idle_s,
        [MN_OPT_KEEPINTVL_S] = t->keep_interval_s,
        [MN_OPT_KEEPCNT] = t->keep_count,
        [MN_OPT_USER_TIMEOUT_MS] = t->user_timeout_ms,
        [MN_OPT_RCVBUF] = t->rcv_buf,
        [MN_OPT_DSCP] = t->tos >> 2,
        [MN_OPT_TTL] = t->ttl,
        [MN_OPT_STATE] = t->state,
        [MN_OPT_MSS] = t->mss,
        [MN_OPT_SNDQ] = t->mcb == MN_NIL ? t->snd_end - t->snd_una : mn_mcb_of(e, t)->snd_bytes,
        [MN_OPT_SRTT_US] = t->srtt_us >> 3,
        [MN_OPT_CWND] = t->cc.cwnd,
        [MN_OPT_SSTHRESH] = t->cc.ssthresh,
        [MN_OPT_RETRANS] = t->retransmits,
        [MN_OPT_QUICKACK] = (t->flags & MN_TF_QUICKACK) != 0,
        [MN_OPT_ISN] = t->iss,
        [MN_OPT_RTO_US] = t->rto_us,
        [MN_OPT_MAXSEG] = t->maxseg,
        [MN_OPT_LINGER_MS] = t->linger_ms,
    };
    if (opt == 0 || opt >= MN_ARRAY_LEN(values)) {
        return -ENOPROTOOPT;
    }
    *v = values[opt];
    return 0;
}
