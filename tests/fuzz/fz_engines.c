/* SPDX-License-Identifier: MIT */
/* The engines' side of a channel of several lanes, with no respect for the other one. */
#include <sys/socket.h>
#include <unistd.h>

#include "fz_sidecar.h"

/* A lane, as its engine has it. */
struct lane {
    struct fz_mem *m;
    uint32_t i;
    uint8_t *at;
    struct mn_lane_shared *sh;
};

static struct lane lane_of(struct fz_mem *m, uint32_t i)
{
    uint8_t *at = mn_chan_lane(m->region, &m->layout, i);

    return (struct lane){m, i, at, (struct mn_lane_shared *)(void *)at};
}

static void publish(struct mn_ring_idx *idx, uint32_t n)
{
    atomic_store(&idx->tail, atomic_load(&idx->tail) + n);
}

/* ---- as an engine would ---- */

static void event_put(const struct lane *l, const struct mn_ctl_evt *evt)
{
    struct mn_ctl_evt *slots = (void *)(l->at + l->m->layout.ctl_complete_off);

    slots[atomic_load(&l->sh->ctl_complete.tail) & (l->m->geo.ctl_slots - 1)] = *evt;
    publish(&l->sh->ctl_complete, 1);
}

/* A flow id that is free, if the application keeps to the rules: the slots in turn. */
static uint32_t flow_new(const struct lane *l)
{
    uint32_t n = l->m->flows[l->i]++;

    return MN_FLOW_ID(n % l->m->geo.flows_max, n / l->m->geo.flows_max);
}

static void answer(const struct lane *l, const struct mn_ctl_cmd *cmd)
{
    struct mn_ctl_evt evt = {.kind = MN_EVT_RESULT, .token = cmd->token, .flow = cmd->flow};

    switch (cmd->op) {
    case MN_CTL_ACCEPT:
    case MN_CTL_RELEASE:
    case MN_CTL_CANCEL:
        return;
    case MN_CTL_LISTEN:
        evt.value = evt.listener = 1 + (cmd->local_port & 3);
        break;
    case MN_CTL_CONNECT:
        evt.flow = flow_new(l);
        evt.local_ip = l->sh->ip;
        evt.local_port = 32768;
        evt.remote_ip = cmd->remote_ip;
        evt.remote_port = cmd->remote_port;
        break;
    default:
        break;
    }
    event_put(l, &evt);
}

void fz_engines_answer(struct fz_mem *m)
{
    for (uint32_t i = 0; m->region != NULL && i < m->geo.n_lanes; i++) {
        struct lane l = lane_of(m, i);
        const struct mn_ctl_cmd *cmds = (const void *)(l.at + m->layout.ctl_submit_off);
        uint32_t head = atomic_load(&l.sh->ctl_submit.head);
        uint32_t n = atomic_load(&l.sh->ctl_submit.tail) - head;

        for (uint32_t k = 0; k < mn_min_u32(n, m->geo.ctl_slots); k++) {
            answer(&l, &cmds[(head + k) & (m->geo.ctl_slots - 1)]);
        }
        atomic_store(&l.sh->ctl_submit.head, head + n);
    }
}

/* ---- as none would ---- */

static uint32_t any_flow(struct fz_in *in)
{
    uint8_t b = fz_u8(in);

    return b == 255 ? fz_u32(in) : MN_FLOW_ID(b & 31, b >> 5);
}

static void put_event(const struct lane *l, struct fz_in *in)
{
    const struct mn_ctl_cmd *cmds = (const void *)(l->at + l->m->layout.ctl_submit_off);
    uint32_t sent = atomic_load(&l->sh->ctl_submit.tail);
    uint8_t a = fz_u8(in), b = fz_u8(in);
    struct mn_ctl_evt evt = {
        .kind = a & 7,
        /* Mostly one of those that the application waits for. */
        .token = (a & 8) != 0 ? b : cmds[(sent - 1 - (b & 3)) & (l->m->geo.ctl_slots - 1)].token,
        .flow = any_flow(in),
        .status = (a & 16) != 0 ? -(int32_t)b : 0,
        .proto = (a & 32) != 0 ? b : b & 3,
        .local_ip = l->sh->ip,
        .local_port = (uint16_t)(1000 + (b & 3)),
        .remote_ip = 0x0a000003u + (b >> 7),
        .remote_port = (uint16_t)(2000 + (b >> 5)),
        .listener = (a & 64) != 0 ? fz_u8(in) : 1 + (b & 3),
        .value = (a & 128) != 0 ? fz_u32(in) : 1 + (b & 3),
    };

    event_put(l, &evt);
}

/* So many connections at once that what the application has to say to them finds no room. */
static void put_accepts(const struct lane *l, struct fz_in *in)
{
    uint8_t a = fz_u8(in);

    for (uint32_t i = 0; i < (a & 31); i++) {
        event_put(l, &(struct mn_ctl_evt){.kind = MN_EVT_ACCEPT,
                                          .flow = flow_new(l),
                                          .proto = a >> 5 & 3,
                                          .listener = 1 + (a >> 7),
                                          .local_ip = l->sh->ip,
                                          .local_port = 1000,
                                          .remote_ip = 0x0a000003u,
                                          .remote_port = (uint16_t)(2000 + i)});
    }
}

static void put_deliver(const struct lane *l, struct fz_in *in)
{
    struct mn_desc *slots = (void *)(l->at + l->m->layout.deliver_off);
    uint8_t a = fz_u8(in), b = fz_u8(in);
    uint32_t full = l->m->geo.buf_bytes;
    const uint32_t lens[] = {100, 0, 1, full - 1, full, full + 1, UINT32_MAX, full};
    uint32_t tail = atomic_load(&l->sh->deliver.tail);

    slots[tail & (l->m->layout.msg_slots_rx - 1)] = (struct mn_desc){
        .buf = (a & 0x80) != 0 ? MN_BUF_NONE : a & 0x7f,
        .len = lens[b & 7],
        .flow = any_flow(in),
        .flags = (b & 0x80) != 0 ? fz_u8(in) : (uint16_t)((b >> 3 & 3) ^ 3),
    };
    publish(&l->sh->deliver, 1);
}

/* Whole messages in buffers in order, without looking whether they have come back. */
static void put_messages(const struct lane *l, struct fz_in *in)
{
    struct mn_desc *slots = (void *)(l->at + l->m->layout.deliver_off);
    uint32_t flow = any_flow(in);
    uint8_t a = fz_u8(in);

    for (uint32_t i = 0; i < (a & 31); i++) {
        uint32_t tail = atomic_load(&l->sh->deliver.tail);

        slots[tail & (l->m->layout.msg_slots_rx - 1)] =
            (struct mn_desc){.buf = (i + (a >> 5)) % l->m->geo.rx_bufs,
                             .len = 1 + i,
                             .flow = flow,
                             .flags = MN_DESC_FIRST | MN_DESC_LAST};
        publish(&l->sh->deliver, 1);
    }
}

static void put_completed(const struct lane *l, struct fz_in *in)
{
    uint32_t *slots = (void *)(l->at + l->m->layout.completed_off);
    uint8_t a = fz_u8(in);

    for (uint32_t i = 0; i <= (a >> 5); i++) {
        uint32_t tail = atomic_load(&l->sh->completed.tail);

        slots[tail & (l->m->layout.ret_slots_tx - 1)] = (a & 31) + i;
        publish(&l->sh->completed, 1);
    }
}

static struct mn_ring_idx *ring(const struct lane *l, uint8_t b)
{
    struct mn_lane_shared *sh = l->sh;
    struct mn_ring_idx *rings[] = {&sh->submit,   &sh->completed,  &sh->deliver,
                                   &sh->released, &sh->ctl_submit, &sh->ctl_complete};

    return rings[b % MN_ARRAY_LEN(rings)];
}

static void poke_index(const struct lane *l, struct fz_in *in)
{
    uint8_t b = fz_u8(in);
    struct mn_ring_idx *idx = ring(l, b >> 2);
    _Atomic uint32_t *word = (b & 1) != 0 ? &idx->tail : &idx->head;

    atomic_store(word, (b & 2) != 0 ? fz_u32(in) : atomic_load(word) + fz_delta(in));
}

static void poke_bytes(const struct fz_mem *m, struct fz_in *in)
{
    uint32_t n = 1 + (fz_u8(in) & 31);
    uint64_t off = (uint64_t)fz_u16(in) * 4 % (m->bytes - n);

    fz_bytes(in, m->region + off, n);
}

/* Everything that the application wrote is read. */
static void drain(const struct lane *l)
{
    struct mn_ring_idx *const read[] = {&l->sh->submit, &l->sh->released, &l->sh->ctl_submit};

    for (uint32_t i = 0; i < MN_ARRAY_LEN(read); i++) {
        atomic_store(&read[i]->head, atomic_load(&read[i]->tail));
    }
}

static void set_flags(const struct lane *l, struct fz_in *in)
{
    uint8_t a = fz_u8(in);

    if ((a & 3) == 3) {
        atomic_store(&l->sh->closed, (a & 4) != 0 ? fz_u32(in) : a);
    } else {
        atomic_store((a & 1) != 0 ? &l->sh->app_sleeps : &l->sh->engine_sleeps, a);
    }
}

static void wake(struct fz_mem *m, uint8_t a)
{
    static const uint8_t bytes[512];

    if (a == 255) {
        shutdown(m->wake, SHUT_RDWR);
    } else {
        (void)send(m->wake, bytes, 1 + 2 * a, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

void fz_engines_act(struct fz_mem *m, struct fz_in *in)
{
    uint8_t b = fz_u8(in);
    struct lane l;

    if (m->region == NULL) {
        return;
    }
    l = lane_of(m, (b >> 4) % m->geo.n_lanes);
    switch (b & 15) {
    case 0:
    case 1:
        put_event(&l, in);
        break;
    case 2:
        put_accepts(&l, in);
        break;
    case 3:
    case 4:
        put_deliver(&l, in);
        break;
    case 5:
    case 6:
        put_messages(&l, in);
        break;
    case 7:
        put_completed(&l, in);
        break;
    case 8:
        poke_index(&l, in);
        break;
    case 9:
        poke_bytes(m, in);
        break;
    case 10:
    case 11:
        drain(&l);
        break;
    case 12:
        set_flags(&l, in);
        break;
    case 13:
        wake(m, fz_u8(in));
        break;
    default:
        fz_engines_answer(m);
        break;
    }
}
