/* SPDX-License-Identifier: MIT */
/* Invariants of the message protocol on the wire (docs/protocol.md): what leaves an engine, held
 * against what it has sent before and against what has arrived for it. */
#include "check_int.h"

#include <stdio.h>
#include <stdlib.h>

#include "machnet/stack/core/wire/wire.h"
#include "prefix.h"

#define SLOTS      MN_MNP_WND_MAX
#define AT_REST    12u /* offsets in the header: what extended mode has from here on, */
#define AT_SACKEND 44u /* where the bitmap ends, */
#define AT_TS      46u /* and where the timestamps are */
/* Equal ACKs so far apart are an answer to DATA that was repeated because they were lost. The stack
 * waits twice as long, by a clock of its own. */
#define ACK_LOST_NS       (100 * MN_NS_PER_MS)
#define HANDSHAKE_REPEATS 2u
#define EQUAL_ACKS        2u

/* One direction of a flow; what its sender has received of the other one is here too. */
struct mn_ck_mnp {
    bool passive;
    bool offered; /* active: our SYN asks for extended mode */
    bool has_mode, ext;
    bool has_rcv;  /* what has arrived is known from the first packet on */
    bool old_data; /* DATA that was acknowledged has come again since the last ACK */
    uint8_t acks_equal, ack_repeats;
    uint16_t feats, mss;
    uint32_t una;  /* highest number that the peer has acknowledged */
    uint32_t edge; /* highest right edge that it has told */
    uint32_t irs;
    uint32_t rcv_nxt; /* lowest number that has not arrived */
    uint32_t ack;     /* highest one that was acknowledged */
    uint32_t pure;    /* what the last ACK said, and when */
    uint64_t pure_ns;
    uint32_t told_at; /* the bitmap that was told last, and the ackno that it came with */
    uint64_t told[MN_MNP_SACK_LEN];
    uint64_t arrived[MN_MNP_SACK_LEN]; /* beyond rcv_nxt: each at its number modulo the bits */
    uint32_t hash[SLOTS];              /* what was sent first; 0: not known */
};

struct mn_ck_syn {
    uint32_t laddr, raddr, node, seq;
    uint16_t lport, rport;
    bool live, marked;
    uint16_t feats, mss, wnd;
};

/* A packet that has left. */
struct out {
    struct mn_check *c;
    struct mn_ck_flow *f;
    struct mn_ck_mnp *m;
    const struct mn_mnp *p;
    const uint8_t *hdr;
    uint64_t now_ns;
};

#define VIOLATION(o, rule, ...) mn_ck_flow_violation((o)->c, (o)->f, (o)->now_ns, rule, __VA_ARGS__)

void mn_ck_mnp_drop(struct mn_check *c, struct mn_ck_flow *f)
{
    if (f->mnp != NULL) {
        free(f->mnp);
        f->mnp = NULL;
        c->stats.mem_bytes -= sizeof(struct mn_ck_mnp);
    }
}

static bool has(const struct mn_ck_mnp *m, uint16_t feature)
{
    return (m->feats & feature) != 0;
}

static bool is_marked(const struct mn_mnp *p)
{
    return p->word12 == MN_MNP_MARKER && p->version != 0;
}

static bool is_arrived(const struct mn_ck_mnp *m, uint32_t seq)
{
    return mn_seq_lt(seq, m->rcv_nxt) ||
           (seq - m->rcv_nxt < SLOTS && (m->arrived[seq / 64 % 4] >> seq % 64 & 1) != 0);
}

static bool is_any_ahead(const struct mn_ck_mnp *m)
{
    return (m->arrived[0] | m->arrived[1] | m->arrived[2] | m->arrived[3]) != 0;
}

/* ---- what arrives -------------------------------------------------------------------------- */

static struct mn_ck_syn *syn_slot(struct mn_check *c, const struct mn_check_conn *k)
{
    uint32_t h = (k->raddr ^ (uint32_t)k->rport << 16 ^ k->lport) * 0x9e3779b1u;

    return &c->syns[h >> 16 & (MN_CK_SYNS - 1)];
}

static bool is_syn_of(const struct mn_ck_syn *s, uint32_t node, const struct mn_check_conn *k)
{
    return s->live && s->node == node && s->laddr == k->laddr && s->raddr == k->raddr &&
           s->lport == k->lport && s->rport == k->rport;
}

/* The engine has still to answer it: what it offers is kept until then. */
static void syn_in(struct mn_check *c, struct mn_ck_flow *f, uint32_t node,
                   const struct mn_check_conn *k, const struct mn_mnp *p)
{
    if (c->syns == NULL) {
        c->syns = calloc(MN_CK_SYNS, sizeof(*c->syns));
        if (c->syns == NULL) {
            return;
        }
    }
    *syn_slot(c, k) = (struct mn_ck_syn){.laddr = k->laddr,
                                         .raddr = k->raddr,
                                         .node = node,
                                         .seq = p->seq,
                                         .lport = k->lport,
                                         .rport = k->rport,
                                         .live = true,
                                         .marked = is_marked(p),
                                         .feats = p->feats,
                                         .mss = p->mss,
                                         .wnd = p->syn_wnd};
    if (f != NULL && p->seq != f->mnp->irs) {
        f->mnp->has_mode = false; /* perhaps another flow begins, and without a SYN-ACK */
    }
}

static void set_mode(struct mn_ck_mnp *m, const struct mn_ck_flow *f, bool ext, uint16_t feats,
                     uint16_t mss, uint16_t wnd)
{
    m->has_mode = true;
    m->ext = ext;
    m->feats = ext ? feats & MN_MNP_F_ALL : 0;
    m->mss = ext ? mss : MN_MNP_MSS;
    m->una = f->iss + 1;
    m->edge = m->una + mn_min_u32(wnd, MN_MNP_WND_MAX);
}

static void synack_in(struct mn_ck_flow *f, const struct mn_mnp *p)
{
    struct mn_ck_mnp *m = f->mnp;
    bool ext = m->offered && is_marked(p);

    if (m->passive || m->has_mode || p->ack != f->iss + 1 ||
        (ext &&
         (p->version > MN_MNP_VERSION || p->mss < MN_MNP_MSS_MIN || p->mss > MN_MNP_MSS_MAX))) {
        return;
    }
    set_mode(m, f, ext, p->feats, p->mss, p->syn_wnd);
    m->irs = p->seq;
    m->ack = m->rcv_nxt = p->seq + 1;
    m->has_rcv = true;
}

static void ack_in(struct mn_ck_flow *f, const struct mn_mnp *p)
{
    struct mn_ck_mnp *m = f->mnp;
    uint32_t edge = p->ack + mn_min_u32(p->wnd, MN_MNP_WND_MAX);

    if ((m->ext ? p->kind == MN_MNP_DATA && !has(m, MN_MNP_F_DATA_ACK) : p->kind != MN_MNP_ACK) ||
        mn_seq_gt(p->ack, f->end)) {
        return;
    }
    m->una = mn_seq_max(m->una, p->ack);
    if (has(m, MN_MNP_F_WND) && mn_seq_gt(edge, m->edge)) {
        m->edge = edge;
    }
}

static void data_in(struct mn_ck_mnp *m, uint32_t seq)
{
    if (mn_seq_lt(seq, m->ack)) {
        m->old_data = true;
    }
    if (seq - m->rcv_nxt >= SLOTS) {
        return;
    }
    if (seq != m->rcv_nxt) {
        m->arrived[seq / 64 % 4] |= UINT64_C(1) << seq % 64;
        return;
    }
    m->rcv_nxt++;
    while (is_any_ahead(m) && (m->arrived[m->rcv_nxt / 64 % 4] >> m->rcv_nxt % 64 & 1) != 0) {
        m->arrived[m->rcv_nxt / 64 % 4] &= ~(UINT64_C(1) << m->rcv_nxt % 64);
        m->rcv_nxt++;
    }
}

void mn_ck_mnp_arrived(struct mn_check *c, uint32_t node, const struct mn_ipv4 *ip)
{
    struct mn_check_conn k;
    struct mn_ck_flow *f;
    struct mn_udp udp;
    struct mn_mnp p;

    if (mn_udp_parse(ip->payload, ip->payload_len, &udp) != 0 ||
        mn_mnp_parse(udp.payload, udp.payload_len, &p) != 0) {
        return;
    }
    k = (struct mn_check_conn){ip->dst, ip->src, udp.dport, udp.sport, 1};
    f = mn_ck_flow_find(c, node, &k);
    if ((f == NULL && p.kind != MN_MNP_SYN) ||
        !mn_udp_csum_ok(ip->src, ip->dst, ip->payload, ip->payload_len)) {
        return;
    }
    switch (p.kind) {
    case MN_MNP_SYN:
        syn_in(c, f, node, &k, &p);
        return;
    case MN_MNP_SYNACK:
        synack_in(f, &p);
        return;
    case MN_MNP_RST:
        mn_ck_touch(c, f); /* it may be gone behind this pass */
        return;
    default:
        break;
    }
    if (!f->mnp->has_mode) {
        return;
    }
    ack_in(f, &p);
    if (p.kind != MN_MNP_ACK) {
        data_in(f->mnp, p.seq);
    } else if (f->has_fin) {
        mn_ck_touch(c, f);
    }
}

/* ---- what leaves: bytes of the header ------------------------------------------------------- */

static bool is_zero(const uint8_t *p, uint32_t from, uint32_t to)
{
    uint8_t any = 0;

    for (uint32_t i = from; i < to; i++) {
        any |= p[i];
    }
    return any == 0;
}

/* Bytes that the packet has no use for, in its mode and with the features of its flow. */
static bool is_clean(const struct out *o, bool ext)
{
    const struct mn_ck_mnp *m = o->m;
    const struct mn_mnp *p = o->p;
    bool data = p->kind == MN_MNP_DATA;

    if (!data && p->msg_flags != 0) {
        return false;
    }
    if (!ext) {
        return is_zero(o->hdr, AT_REST, MN_MNP_HLEN);
    }
    if (p->kind == MN_MNP_SYN || p->kind == MN_MNP_SYNACK) {
        return o->hdr[17] == 0 && is_zero(o->hdr, 24, AT_TS) && (p->feats & ~MN_MNP_F_ALL) == 0;
    }
    if ((!has(m, MN_MNP_F_TS) && (p->tsval | p->tsecr) != 0) ||
        (!has(m, MN_MNP_F_WND) && p->wnd != 0)) {
        return false;
    }
    if (data) {
        bool length = has(m, MN_MNP_F_MSGLEN) && (p->msg_flags & MN_MNP_FIRST) != 0;

        return is_zero(o->hdr, AT_REST + 4, AT_SACKEND) && (length || p->word12 == 0);
    }
    return has(m, MN_MNP_F_SACK) || (p->sack[0] | p->sack[1] | p->sack[2] | p->sack[3]) == 0;
}

static bool is_framed(const struct mn_mnp *p)
{
    switch (p->msg_flags) {
    case MN_MNP_FIRST | MN_MNP_LAST:
    case MN_MNP_FIRST | MN_MNP_MORE:
    case MN_MNP_MORE:
    case MN_MNP_LAST:
        return true;
    default:
        return false;
    }
}

static int sent_header(const struct out *o, bool ext)
{
    const struct mn_mnp *p = o->p;

    if (!is_clean(o, ext)) {
        return VIOLATION(o, "reserved bytes are zero", "not in a packet of kind %u, %s mode",
                         p->kind, ext ? "extended" : "plain");
    }
    if (p->kind == MN_MNP_DATA ? p->payload_len == 0 || p->payload_len > o->m->mss || !is_framed(p)
                               : p->payload_len != 0) {
        return VIOLATION(o, "a packet has the payload and the framing of its kind",
                         "kind %u, %u bytes, flags %u", p->kind, p->payload_len, p->msg_flags);
    }
    if (ext && p->wnd > MN_MNP_WND_MAX) {
        return VIOLATION(o, "no window is larger than the bitmap", "%u packets", p->wnd);
    }
    return 0;
}

/* ---- what leaves: numbers ------------------------------------------------------------------- */

static uint32_t hash_of(const struct mn_mnp *p)
{
    struct mn_prefix all = {0};
    uint64_t h;

    mn_prefix_add(&all, p->payload, p->payload_len);
    h = mn_prefix_digest(&all) ^
        ((uint64_t)p->word12 << 32 | (uint64_t)p->msg_flags << 8 | p->kind) *
            UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(h ^ h >> 32) | 1u;
}

static int sent_again(const struct out *o)
{
    const struct mn_mnp *p = o->p;
    struct mn_ck_mnp *m = o->m;
    uint32_t was = m->hash[p->seq % SLOTS];

    if (mn_seq_lt(p->seq, m->una) && p->payload_len == 1 && p->payload[0] == 0) {
        return 0; /* keep-alive: an octet that is not the message's */
    }
    if (o->f->end - p->seq > SLOTS || mn_seq_le(p->seq, o->f->iss) || was == 0) {
        return 0;
    }
    o->c->stats.compared += p->payload_len;
    if (hash_of(p) != was) {
        return VIOLATION(o, "what is sent again is what was sent first",
                         "packet %u, of kind %u with %u bytes", p->seq - o->f->iss, p->kind,
                         p->payload_len);
    }
    return 0;
}

/* DATA or FIN for the first time. */
static int sent_first(const struct out *o)
{
    const struct mn_mnp *p = o->p;
    struct mn_ck_mnp *m = o->m;
    struct mn_ck_flow *f = o->f;
    uint32_t edge = has(m, MN_MNP_F_WND) ? m->edge : m->una + (m->ext ? 64u : 32u);

    if (f->has_fin) {
        return VIOLATION(o, "nothing is sent behind a FIN", "packet %u, the FIN was %u",
                         p->seq - f->iss, f->data_end - f->iss);
    }
    /* The first one may always go, to ask for room; FIN does not count. */
    if (p->kind == MN_MNP_DATA && mn_seq_ge(p->seq, edge) && p->seq != m->una) {
        return VIOLATION(o, "what is sent is within the window of the peer",
                         "packet %u, acknowledged before %u, right edge %u", p->seq - f->iss,
                         m->una - f->iss, edge - f->iss);
    }
    if (p->seq - f->end >= SLOTS) {
        memset(m->hash, 0, sizeof(m->hash));
    }
    /* What is between was given up before it could leave: no address of the next hop. */
    for (uint32_t i = 0; f->end + i != p->seq && i < SLOTS; i++) {
        m->hash[(f->end + i) % SLOTS] = 0;
    }
    m->hash[p->seq % SLOTS] = hash_of(p);
    f->has_fin = p->kind == MN_MNP_FIN;
    f->data_end = p->seq;
    f->end = p->seq + 1;
    return 0;
}

static int sent_number(const struct out *o)
{
    if (o->p->kind != MN_MNP_ACK) {
        return mn_seq_lt(o->p->seq, o->f->end) ? sent_again(o) : sent_first(o);
    }
    if (mn_seq_lt(o->p->seq, o->f->end) || (o->f->has_fin && o->p->seq != o->f->end)) {
        return VIOLATION(o, "an ACK bears the number of what is sent next", "%u, not %u",
                         o->p->seq - o->f->iss, o->f->end - o->f->iss);
    }
    return 0;
}

/* ---- what leaves: acknowledgements ---------------------------------------------------------- */

/* Word i of a bitmap that is moved down by n bits. */
static uint64_t moved(const uint64_t map[MN_MNP_SACK_LEN], uint32_t n, uint32_t i)
{
    uint32_t w = i + n / 64, b = n % 64;
    uint64_t low = w < MN_MNP_SACK_LEN ? map[w] >> b : 0;

    return b == 0 || w + 1 >= MN_MNP_SACK_LEN ? low : low | map[w + 1] << (64 - b);
}

static int sent_bitmap(const struct out *o)
{
    const struct mn_mnp *p = o->p;
    struct mn_ck_mnp *m = o->m;
    uint64_t told[MN_MNP_SACK_LEN];
    uint32_t by = mn_min_u32(p->ack - m->told_at, SLOTS);

    for (uint32_t i = 0; i < MN_MNP_SACK_LEN; i++) {
        told[i] = moved(m->told, by, i);
        if ((told[i] & ~p->sack[i]) != 0) {
            uint32_t bit = 64 * i + (uint32_t)__builtin_ctzll(told[i] & ~p->sack[i]);

            return VIOLATION(o, "what is said to be held is not given up",
                             "packet %u, in an ACK of %u", p->ack + 1 + bit - m->irs,
                             p->ack - m->irs);
        }
    }
    for (uint32_t i = 0; i < MN_MNP_SACK_LEN; i++) {
        for (uint64_t bits = p->sack[i] & ~told[i]; bits != 0; bits &= bits - 1) {
            uint32_t seq = p->ack + 1 + 64 * i + (uint32_t)__builtin_ctzll(bits);

            if (!is_arrived(m, seq)) {
                return VIOLATION(o, "only what has arrived is said to be held", "packet %u",
                                 seq - m->irs);
            }
        }
    }
    memcpy(m->told, p->sack, sizeof(m->told));
    m->told_at = p->ack;
    return 0;
}

/* Plain mode: a C++ host that has nothing under way ends at the third. */
static int sent_equal(const struct out *o)
{
    const struct mn_mnp *p = o->p;
    struct mn_ck_mnp *m = o->m;
    bool untouched = !m->passive && m->rcv_nxt == m->irs + 1 && !is_any_ahead(m);

    if (m->acks_equal == 0 || p->ack != m->pure) {
        m->acks_equal = 0;
    } else if (m->rcv_nxt != p->ack || is_any_ahead(m)) {
        m->acks_equal = 0; /* one is held, or could be */
    } else if (m->acks_equal >= EQUAL_ACKS) {
        if (m->old_data && o->now_ns - m->pure_ns >= ACK_LOST_NS) {
            m->acks_equal = EQUAL_ACKS - 1;
        } else if (untouched && m->ack_repeats < HANDSHAKE_REPEATS) {
            m->ack_repeats++;
            m->acks_equal = EQUAL_ACKS - 1;
        } else {
            return VIOLATION(o, "at most two ACKs of plain mode say the same",
                             "another one of %u, nothing is held", p->ack - m->irs);
        }
    }
    m->acks_equal++;
    m->pure = p->ack;
    m->pure_ns = o->now_ns;
    m->old_data = false;
    return 0;
}

static int sent_ack(const struct out *o)
{
    const struct mn_mnp *p = o->p;
    struct mn_ck_mnp *m = o->m;
    int rc = 0;

    if (p->kind == MN_MNP_DATA && !has(m, MN_MNP_F_DATA_ACK)) {
        return p->ack == MN_MNP_NO_ACK ? 0
                                       : VIOLATION(o, "DATA of this mode acknowledges nothing",
                                                   "but it has an ackno of %u", p->ack);
    }
    if (!m->has_rcv) {
        return 0;
    }
    if (mn_seq_lt(p->ack, m->ack)) {
        return VIOLATION(o, "acknowledgements only go forward", "back by %u, to %u",
                         m->ack - p->ack, p->ack - m->irs);
    }
    if (mn_seq_gt(p->ack, m->rcv_nxt)) {
        return VIOLATION(o, "only what has arrived is acknowledged",
                         "all before %u, but %u has not arrived", p->ack - m->irs,
                         m->rcv_nxt - m->irs);
    }
    m->ack = p->ack;
    if (m->ext && p->kind != MN_MNP_DATA) {
        rc = sent_bitmap(o);
    }
    return rc < 0 || m->ext || p->kind != MN_MNP_ACK ? rc : sent_equal(o);
}

/* ---- what leaves: the handshake ------------------------------------------------------------- */

static void begin(struct mn_check *c, struct mn_ck_flow *f, const struct mn_mnp *p)
{
    struct mn_ck_mnp *m = f->mnp;
    bool passive = p->kind == MN_MNP_SYNACK;

    *m = (struct mn_ck_mnp){.passive = passive, .offered = !passive && is_marked(p)};
    f->iss = p->seq;
    f->end = f->data_end = f->kept = p->seq + 1;
    f->has_fin = f->has_look = f->scaled = false;
    f->has_syn = true;
    if (passive) {
        m->irs = p->ack - 1;
        m->ack = m->rcv_nxt = p->ack;
        m->has_rcv = !mn_ck_is_held(c, f->node);
    }
}

static int sent_syn(const struct out *o, bool again)
{
    const struct mn_mnp *p = o->p;
    struct mn_ck_mnp *m = o->m;
    struct mn_ck_flow *f = o->f;
    const struct mn_check_conn k = {f->laddr, f->raddr, f->lport, f->rport, 1};
    bool ext = is_marked(p);

    if (again && ext != (m->passive ? m->ext : m->offered) && (m->has_mode || !m->passive)) {
        return VIOLATION(o, "a flow has one mode", "a SYN %s the marker is repeated %s it",
                         ext ? "without" : "with", ext ? "with" : "without");
    }
    if (!again && m->passive) {
        struct mn_ck_syn *s = o->c->syns == NULL ? NULL : syn_slot(o->c, &k);
        bool seen = s != NULL && is_syn_of(s, f->node, &k) && s->seq == m->irs;

        if (seen && ext && (!s->marked || (p->feats & ~s->feats) != 0)) {
            return VIOLATION(o, "only what was offered is accepted", "features %x, offered %x",
                             p->feats, s->marked ? s->feats : 0u);
        }
        set_mode(m, f, ext, p->feats, seen ? s->mss : MN_MNP_MSS_MAX,
                 seen ? s->wnd : MN_MNP_WND_MAX);
    }
    return sent_header(o, ext);
}

/* The flow of a packet; a SYN or SYN-ACK makes it. */
static struct mn_ck_flow *flow_of(struct mn_check *c, uint32_t node, const struct mn_check_conn *k,
                                  const struct mn_mnp *p)
{
    struct mn_ck_flow *f;

    if (p->kind != MN_MNP_SYN && p->kind != MN_MNP_SYNACK) {
        return mn_ck_flow_find(c, node, k);
    }
    f = mn_ck_flow_get(c, node, k, p->seq);
    if (f != NULL && f->mnp == NULL) {
        f->mnp = calloc(1, sizeof(*f->mnp));
        if (f->mnp == NULL) {
            mn_ck_flow_drop(c, f);
            return NULL;
        }
        c->stats.mem_bytes += sizeof(*f->mnp);
    }
    return f;
}

int mn_ck_mnp_sent(struct mn_check *c, uint32_t node, const struct mn_ipv4 *ip, uint64_t now_ns)
{
    struct mn_check_conn k;
    struct mn_udp udp;
    struct mn_mnp p;
    int rc;

    if (mn_udp_parse(ip->payload, ip->payload_len, &udp) != 0 ||
        mn_mnp_parse(udp.payload, udp.payload_len, &p) != 0) {
        return 0;
    }
    k = (struct mn_check_conn){ip->src, ip->dst, udp.sport, udp.dport, 1};
    struct mn_ck_flow *f = flow_of(c, node, &k, &p);
    if (f == NULL) {
        return 0;
    }
    struct out o = {c, f, f->mnp, &p, udp.payload, now_ns};
    mn_ck_touch(c, f);
    if (p.kind == MN_MNP_RST) {
        return 0; /* it may belong to no connection */
    }
    if (p.kind == MN_MNP_SYN || p.kind == MN_MNP_SYNACK) {
        bool again = f->has_syn && f->iss == p.seq && f->end == p.seq + 1 && f->has_look &&
                     o.m->passive == (p.kind == MN_MNP_SYNACK) &&
                     (!o.m->passive || o.m->irs == p.ack - 1);

        if (!again) {
            begin(c, f, &p);
        }
        return sent_syn(&o, again);
    }
    if (!o.m->has_mode) {
        return 0;
    }
    if (p.kind == MN_MNP_FIN && !has(o.m, MN_MNP_F_FIN)) {
        return VIOLATION(&o, "FIN leaves where both sides have the feature", "packet %u",
                         p.seq - f->iss);
    }
    rc = sent_header(&o, o.m->ext);
    rc = rc < 0 ? rc : sent_number(&o);
    return rc < 0 ? rc : sent_ack(&o);
}
