/* SPDX-License-Identifier: MIT */
/*
 * Two engines back to back over a path that loses, doubles, delays, reorders and damages frames as
 * the input says, with an application on each. Whatever happens, each side reads a prefix of what
 * the other one wrote (fz_app.c). When the faults stop, everything that was written on a connection
 * that both sides still have arrives, and after both sides closed, nothing is left. Built a second
 * time with FZ_MNP for the message protocol.
 */
#include "fz_app.h"

#define OPS_MAX       300u
#define RUN_EVENTS    4000u
#define END_EVENTS    60000u
#define LATENCY_NS    (100 * MN_NS_PER_US)
#define IN_FLIGHT_MAX 512u
#define PROTO         (FZ_MNP ? MN_IPPROTO_UDP : MN_IPPROTO_TCP)

struct link {
    struct fz_queue q;     /* in order of arrival */
    uint32_t pattern;      /* two bits for each of the next frames */
    uint32_t pattern_left; /* frames */
    uint8_t rate;          /* of 256 frames that many meet with something */
    bool cut;              /* nothing gets through */
};

struct fuzz {
    struct fz_in in;
    struct fz_host host[2];
    struct fz_app app[2];
    struct link link[2]; /* from host i to the other one */
    uint64_t now_ns, rng;
    bool reads[2]; /* the application takes what comes */
};

static uint32_t draw(struct fuzz *z)
{
    z->rng = z->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(z->rng >> 33);
}

/* ---- the path ---- */

static void put_in_order(struct fz_queue *q, struct fz_frame *f, uint64_t at_ns)
{
    struct fz_frame **at = &q->head;

    f->at_ns = at_ns;
    while (*at != NULL && (*at)->at_ns <= at_ns) {
        at = &(*at)->next;
    }
    f->next = *at;
    *at = f;
    if (f->next == NULL) {
        q->tail = f;
    }
    q->n++;
}

static struct fz_frame *copy_of(const struct fz_frame *f)
{
    struct fz_frame *c = fz_frame_new(f->len);
    uint8_t *data = c->data;

    memcpy(data, f->data, f->len);
    *c = *f;
    c->data = data;
    return c;
}

enum { FATE_PASS, FATE_DROP, FATE_LATE, FATE_DAMAGE, FATE_DOUBLE };

static uint32_t fate_of(struct fuzz *z, struct link *l)
{
    if (l->cut) {
        return FATE_DROP;
    }
    if (l->pattern_left > 0) {
        l->pattern_left--;
        l->pattern = l->pattern << 2 | l->pattern >> 30;
        return l->pattern & 3;
    }
    if (l->rate != 0 && (draw(z) & 255) < l->rate) {
        return FATE_DROP + draw(z) % 4;
    }
    return FATE_PASS;
}

/* A segment's connection at its sender (i) or, with `there`, at its receiver. */
static const struct mn_tcb *tcb_of_frame(const struct fuzz *z, uint32_t i, const struct fz_frame *f,
                                         bool there)
{
    const uint8_t *tcp = f->data + MN_ETH_HLEN + MN_IPV4_HLEN;
    uint16_t src = mn_rd16be(tcp), dst = mn_rd16be(tcp + 2);
    uint32_t near = z->host[i].cfg.ip, far = z->host[1 - i].cfg.ip;

    return there ? mn_flow_find(z->host[1 - i].e, PROTO, far, dst, near, src)
                 : mn_flow_find(z->host[i].e, PROTO, near, src, far, dst);
}

static bool is_ours(const struct fz_frame *f)
{
    return f->len >= MN_ETH_HLEN + MN_IPV4_HLEN + MN_TCP_HLEN && f->data[12] == 8 &&
           f->data[13] == 0 && f->data[14] == 0x45 && f->data[23] == PROTO;
}

/* Notes which connection a segment without a timestamp is of. */
static void mark_incarnation(const struct fuzz *z, uint32_t i, struct fz_frame *f)
{
    const struct mn_tcb *t = is_ours(f) ? tcb_of_frame(z, i, f, false) : NULL;

    f->has_iss = t != NULL && (t->flags & MN_TF_TS) == 0;
    f->iss = f->has_iss ? t->iss : 0;
}

static bool opens_or_resets(const struct fz_frame *f)
{
    const uint8_t *l4 = f->data + MN_ETH_HLEN + MN_IPV4_HLEN;

    if (FZ_MNP) {
        return f->len >= MN_ETH_HLEN + MN_IPV4_HLEN + MN_UDP_HLEN + MN_MNP_HLEN &&
               ((l4[MN_UDP_HLEN + 2] & MN_MNP_SYN) != 0 || l4[MN_UDP_HLEN + 2] == MN_MNP_RST);
    }
    return (l4[13] & (MN_TCP_SYN | MN_TCP_RST)) != 0;
}

/* A segment that has outlived its connection, while another one between the same ports is there:
 * without timestamps only the quiet time of RFC 9293 3.4.3 protects that, which a connection that
 * was reset does not keep. */
static bool is_stale(const struct fuzz *z, uint32_t i, const struct fz_frame *f)
{
    const struct mn_tcb *u = f->has_iss && is_ours(f) ? tcb_of_frame(z, i, f, true) : NULL;

    return u != NULL && !opens_or_resets(f) && u->state >= MN_TCP_SYN_RECEIVED && u->irs != f->iss;
}

static void forward(struct fuzz *z, struct link *l, struct fz_frame *f)
{
    uint64_t at = z->now_ns + LATENCY_NS;

    mark_incarnation(z, (uint32_t)(l - z->link), f);

    if (l->q.n >= IN_FLIGHT_MAX) {
        fz_frame_free(f);
        return;
    }
    switch (fate_of(z, l)) {
    case FATE_DROP:
        fz_frame_free(f);
        return;
    case FATE_LATE:
        at += draw(z) % (40 * MN_NS_PER_MS);
        break;
    case FATE_DAMAGE:
        /* One bit, which checksums always find; ARP has none. */
        if (f->csum == MN_CSUM_NONE && f->len > MN_ETH_HLEN && f->data[12] == 8 &&
            f->data[13] == 0) {
            uint32_t bit = draw(z) % (f->len * 8);

            f->data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        }
        break;
    case FATE_DOUBLE:
        put_in_order(&l->q, copy_of(f), at + draw(z) % MN_NS_PER_MS);
        break;
    default:
        break;
    }
    f->split = (draw(z) & 7) == 0 ? 134 + draw(z) % 1500 : 0;
    put_in_order(&l->q, f, at);
}

static void step(struct fuzz *z, uint32_t i)
{
    struct fz_frame *f;

    z->host[i].now_ns = z->now_ns;
    fz_host_poll(&z->host[i]);
    while ((f = fz_queue_get(&z->host[i].nic.tx)) != NULL) {
        forward(z, &z->link[i], f);
    }
    if (fz_app_chan(&z->app[i]) != NULL) {
        fz_app_results(&z->app[i]);
        if (z->reads[i]) {
            fz_app_receive(&z->app[i], 1u << 16);
        }
        mn_app_flush(fz_app_chan(&z->app[i]));
    }
}

/* What comes next: an arrival or a deadline. False: nothing until `until`. */
static bool next_event(struct fuzz *z, uint64_t until)
{
    uint64_t at = MN_NEVER;

    for (uint32_t i = 0; i < 2; i++) {
        at = mn_min_u64(at, mn_engine_deadline(z->host[i].e));
        if (z->link[i].q.head != NULL) {
            at = mn_min_u64(at, z->link[i].q.head->at_ns);
        }
    }
    if (at > until) {
        z->now_ns = mn_max_u64(z->now_ns, until);
        return false;
    }
    z->now_ns = mn_max_u64(z->now_ns, at);
    for (uint32_t i = 0; i < 2; i++) {
        struct fz_queue *q = &z->link[i].q;
        bool arrived = false;

        while (q->head != NULL && q->head->at_ns <= z->now_ns) {
            struct fz_frame *f = fz_queue_get(q);

            if (is_stale(z, i, f)) {
                fz_frame_free(f);
                continue;
            }
            fz_queue_put(&z->host[1 - i].nic.rx, f);
            arrived = true;
        }
        if (arrived || mn_engine_deadline(z->host[1 - i].e) <= z->now_ns) {
            step(z, 1 - i);
        }
    }
    return true;
}

/* False: the bound on events ended it. */
static bool run(struct fuzz *z, uint64_t ns, uint32_t events)
{
    uint64_t until = z->now_ns + ns;

    while (events > 0 && next_event(z, until)) {
        events--;
    }
    return events > 0;
}

/* ---- operations ---- */

static struct fz_flow *pick_flow(struct fz_app *a, uint8_t b)
{
    for (uint32_t i = 0; i < FZ_FLOWS; i++) {
        struct fz_flow *f = &a->flows[(b + i) % FZ_FLOWS];

        if (f->id != MN_FLOW_NONE && !f->closed) {
            return f;
        }
    }
    return NULL;
}

static void op_setopt(struct fuzz *z, struct fz_app *a, struct fz_flow *f)
{
    static const struct {
        uint32_t opt, value;
    } choices[] = {
        {MN_OPT_NODELAY, 1},  {MN_OPT_NODELAY, 0},    {MN_OPT_RCVBUF, 2048},
        {MN_OPT_MAXSEG, 88},  {MN_OPT_RCVBUF, 65536}, {MN_OPT_KEEPALIVE, 1},
        {MN_OPT_QUICKACK, 1}, {MN_OPT_KEEPIDLE_S, 1}, {MN_OPT_MAXSEG, 1000},
    };
    uint8_t b = fz_u8(&z->in) % MN_ARRAY_LEN(choices);
    int64_t token = mn_app_setopt(fz_app_chan(a), f->id, choices[b].opt, choices[b].value);

    if (token > 0) {
        (void)mn_app_forget(fz_app_chan(a), token);
    }
}

static void op_flow(struct fuzz *z, struct fz_app *a, uint8_t what)
{
    static const uint32_t lingers[] = {MN_LINGER_DEFAULT, 0, 100, 5000};
    struct fz_flow *f = pick_flow(a, fz_u8(&z->in));

    if (f == NULL) {
        return;
    }
    if (what < 3) {
        uint32_t n = 1 + (fz_u8(&z->in) & 31), len = fz_len(&z->in);

        while (n-- > 0 && fz_app_send(a, f, len, what == 2 ? MN_APP_MORE | MN_APP_URG : 0) > 0) {
        }
    } else if (what == 3) {
        fz_app_shutdown(a, f);
    } else if (what == 4) {
        fz_app_close(a, f, lingers[fz_u8(&z->in) & 3]);
    } else {
        op_setopt(z, a, f);
    }
}

static void op_fault(struct fuzz *z, uint8_t b)
{
    struct link *l = &z->link[b & 1];

    switch ((b >> 1) & 3) {
    case 0:
        l->pattern = fz_u32(&z->in);
        l->pattern_left = 16;
        break;
    case 1:
        l->rate = fz_u8(&z->in);
        z->rng ^= l->rate;
        break;
    case 2:
        l->cut = !l->cut;
        break;
    default:
        z->host[b & 1].nic.alloc_fail = fz_u8(&z->in) & 15;
        z->host[b & 1].nic.tx_stuck = fz_u8(&z->in) & 15;
        break;
    }
}

static void op_time(struct fuzz *z)
{
    static const uint64_t steps_us[] = {0, 100, 300, 5000, 50000, 300000, 2000000, 20000000};

    (void)run(z, steps_us[fz_u8(&z->in) & 7] * 1000, RUN_EVENTS);
}

static void op(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in), side = b >> 7;
    struct fz_app *a = &z->app[side];

    switch (b & 15) {
    case 0:
        fz_app_listen(a, (b >> 4) & 3, 0);
        break;
    case 1:
        fz_app_connect(a, z->host[1 - side].cfg.ip, (uint16_t)(FZ_PORT_FIRST + ((b >> 4) & 3)),
                       (b & 64) != 0 ? 2000 : 0, 0);
        break;
    case 2:
        /* Both at once: a simultaneous open, if the path lets the SYNs cross. */
        fz_app_connect(a, z->host[1 - side].cfg.ip, 3000, 3004, 0);
        fz_app_connect(&z->app[1 - side], z->host[side].cfg.ip, 3004, 3000, 0);
        mn_app_flush(fz_app_chan(&z->app[1 - side]));
        step(z, 1 - side);
        break;
    case 3:
        z->reads[side] = !z->reads[side];
        break;
    case 4:
        fz_app_receive(a, 1 + fz_len(&z->in));
        break;
    case 5:
    case 6:
        op_fault(z, b >> 4);
        break;
    case 7:
    case 8:
        op_time(z);
        break;
    default:
        op_flow(z, a, (b & 15) - 9);
        break;
    }
    mn_app_flush(fz_app_chan(a));
    step(z, side);
}

/* ---- the end ---- */

static const struct mn_tcb *tcb_of(const struct fuzz *z, uint32_t i, const struct fz_flow *f)
{
    return mn_flow_find(z->host[i].e, PROTO, z->host[i].cfg.ip, f->local_port,
                        z->host[1 - i].cfg.ip, f->remote_port);
}

static bool alive(const struct fz_app *a, const struct fz_flow *f)
{
    struct mn_app_flow_info info;

    return !f->closed && mn_app_flow_info(fz_app_chan(a), f->id, &info) == 0 && !info.ended;
}

/* A connection that both applications still have: all that one wrote, the other one has read. */
static void check_flow(struct fuzz *z, uint32_t i, const struct fz_flow *f)
{
    const struct mn_tcb *t = tcb_of(z, i, f), *u;

    for (uint32_t k = 0; k < FZ_FLOWS; k++) {
        const struct fz_flow *g = &z->app[1 - i].flows[k];

        if (g->id == MN_FLOW_NONE || g->local_port != f->remote_port ||
            g->remote_port != f->local_port || !alive(&z->app[1 - i], g)) {
            continue;
        }
        u = tcb_of(z, 1 - i, g);
        if (t != NULL && u != NULL && t->iss == u->irs && t->irs == u->iss &&
            t->state >= MN_TCP_ESTABLISHED && u->state >= MN_TCP_ESTABLISHED) {
            FZ_CHECK(g->rx_off == f->tx_off);
            FZ_CHECK(t->snd_una == t->snd_end + ((t->flags & MN_TF_FIN_SENT) != 0));
        }
    }
}

static void heal(struct fuzz *z)
{
    for (uint32_t i = 0; i < 2; i++) {
        z->link[i].pattern_left = z->link[i].rate = 0;
        z->link[i].cut = false;
        z->host[i].nic.alloc_fail = z->host[i].nic.tx_stuck = 0;
        z->reads[i] = true;
    }
}

static void finish(struct fuzz *z)
{
    heal(z);
    for (uint32_t i = 0; i < 2; i++) {
        fz_app_receive(&z->app[i], 1u << 16);
        mn_app_flush(fz_app_chan(&z->app[i]));
        step(z, i);
    }
    FZ_CHECK(run(z, 240 * MN_NS_PER_S, END_EVENTS));
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t k = 0; k < FZ_FLOWS; k++) {
            struct fz_flow *f = &z->app[i].flows[k];

            if (f->id != MN_FLOW_NONE && alive(&z->app[i], f)) {
                check_flow(z, i, f);
            }
        }
    }
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t k = 0; k < FZ_FLOWS; k++) {
            if (z->app[i].flows[k].id != MN_FLOW_NONE) {
                fz_app_close(&z->app[i], &z->app[i].flows[k], MN_LINGER_DEFAULT);
            }
        }
        step(z, i);
    }
    FZ_CHECK(run(z, 240 * MN_NS_PER_S, END_EVENTS));
    for (uint32_t i = 0; i < 2; i++) {
        struct fz_frame *f;

        fz_chan_detach(&z->host[i], 0, 1000);
        FZ_CHECK(run(z, 240 * MN_NS_PER_S, END_EVENTS));
        while ((f = fz_queue_get(&z->link[i].q)) != NULL) {
            fz_frame_free(f);
        }
    }
    fz_host_close(&z->host[0]);
    fz_host_close(&z->host[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t mtus[] = {1500, 576, 9000, 1500};
    static struct fuzz z;
    struct mn_config cfg;
    struct mn_chan_geometry geo;

    z = (struct fuzz){.in = {data, data + size}, .reads = {true, true}};
    uint8_t b = fz_u8(&z.in);
    for (uint32_t i = 0; i < 2; i++) {
        fz_host_config(&z.in, &cfg, FZ_IP(1 + i));
        cfg.secret[1] = (uint8_t)i;
        if (FZ_MNP) {
            fz_host_config_mnp(&z.in, &cfg);
        }
        cfg.user_timeout_ms = cfg.mnp_user_timeout_ms = 300000;
        fz_host_open(&z.host[i], &cfg, mtus[b & 3], (b & 4) != 0 ? 7 : 0);
        fz_chan_geometry(&z.in, &geo);
        fz_chan_open(&z.host[i], 0, &geo);
        fz_app_open(&z.app[i], &z.host[i], 0);
        z.app[i].mnp = FZ_MNP;
    }
    z.now_ns = z.host[0].now_ns;
    for (uint32_t n = 0; n < OPS_MAX && fz_more(&z.in); n++) {
        op(&z);
    }
    finish(&z);
    return 0;
}
