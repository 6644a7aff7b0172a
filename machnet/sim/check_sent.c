/* SPDX-License-Identifier: MIT */
/* Invariants of the frames that leave an engine: what is sent again is what was sent first. */
#include "check_int.h"

#include <stdlib.h>

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/wire.h"

#define RING_BYTES_FIRST (1u << 14)
/* Bytes kept of what a connection has sent: further back than this nothing is compared. */
#define RING_BYTES_MAX (1u << 20)
/* All connections together. */
#define RINGS_BYTES_MAX (UINT64_C(256) << 20)

void mn_ck_ring_drop(struct mn_check *c, struct mn_ck_flow *f)
{
    free(f->ring);
    c->stats.mem_bytes -= f->ring_bytes;
    f->ring = NULL;
    f->ring_bytes = 0;
    f->kept = f->data_end;
}

void mn_ck_touch(struct mn_check *c, struct mn_ck_flow *f)
{
    uint32_t i = (uint32_t)(f - c->flows);

    if (f->touched) {
        return;
    }
    f->touched = true;
    f->touched_next = MN_NIL;
    if (c->touched_head == MN_NIL) {
        c->touched_head = i;
    } else {
        c->flows[c->touched_tail].touched_next = i;
    }
    c->touched_tail = i;
}

static void ring_put(struct mn_ck_flow *f, uint32_t seq, const uint8_t *p, uint32_t len)
{
    uint32_t at = seq & (f->ring_bytes - 1);
    uint32_t first = mn_min_u32(len, f->ring_bytes - at);

    memcpy(f->ring + at, p, first);
    memcpy(f->ring, p + first, len - first);
}

static uint32_t ring_differs(const struct mn_ck_flow *f, uint32_t seq, const uint8_t *p,
                             uint32_t len)
{
    uint32_t mask = f->ring_bytes - 1, at = seq & mask;
    uint32_t first = mn_min_u32(len, f->ring_bytes - at);

    if (memcmp(f->ring + at, p, first) == 0 && memcmp(f->ring, p + first, len - first) == 0) {
        return MN_NIL;
    }
    for (uint32_t i = 0;; i++) {
        if (f->ring[(seq + i) & mask] != p[i]) {
            return i;
        }
    }
}

/* Room for `len` more bytes behind data_end. What is acknowledged goes first, then, at the bound,
 * the oldest. */
static void ring_room(struct mn_check *c, struct mn_ck_flow *f, uint32_t len)
{
    uint32_t need;

    if (f->has_look && mn_seq_gt(f->una, f->kept)) {
        f->kept = mn_seq_min(f->una, f->data_end);
    }
    need = f->data_end - f->kept + len;
    if (need > f->ring_bytes && f->ring_bytes < RING_BYTES_MAX) {
        uint32_t bytes = f->ring_bytes == 0 ? RING_BYTES_FIRST : f->ring_bytes;
        uint8_t *ring;

        while (bytes < need && bytes < RING_BYTES_MAX) {
            bytes *= 2;
        }
        ring = c->stats.mem_bytes + bytes > RINGS_BYTES_MAX ? NULL : malloc(bytes);
        if (ring != NULL) {
            struct mn_ck_flow old = *f;

            f->ring = ring;
            f->ring_bytes = bytes;
            for (uint32_t seq = old.kept; seq != old.data_end;) {
                uint32_t at = seq & (old.ring_bytes - 1);
                uint32_t n = mn_min_u32(old.data_end - seq, old.ring_bytes - at);

                ring_put(f, seq, old.ring + at, n);
                seq += n;
            }
            free(old.ring);
            c->stats.mem_bytes += bytes - old.ring_bytes;
        }
    }
    if (need > f->ring_bytes) {
        f->kept += mn_min_u32(need - f->ring_bytes, f->data_end - f->kept);
    }
}

/* Bytes [seq, seq + len) have left: those sent before are the same, the others are kept. */
static int sent_bytes(struct mn_check *c, struct mn_ck_flow *f, uint32_t seq, const uint8_t *p,
                      uint32_t len, uint64_t now_ns)
{
    uint32_t again = mn_seq_lt(seq, f->data_end) ? mn_min_u32(f->data_end - seq, len) : 0;

    if (again > 0) {
        uint32_t skip = mn_seq_lt(seq, f->kept) ? mn_min_u32(f->kept - seq, again) : 0;

        if (f->has_look && mn_seq_lt(seq, f->una) && !mn_ck_is_held(c, f->node)) {
            return mn_ck_flow_violation(c, f, now_ns, "only what is not acknowledged is sent again",
                                        "bytes %u to %u, but all before %u are acknowledged",
                                        seq - f->iss, seq + len - f->iss, f->una - f->iss);
        }
        if (skip < again) {
            uint32_t at = ring_differs(f, seq + skip, p + skip, again - skip);

            c->stats.compared += again - skip;
            if (at != MN_NIL) {
                return mn_ck_flow_violation(c, f, now_ns,
                                            "what is sent again is what was sent first",
                                            "byte %u, in a segment from %u of %u bytes",
                                            seq + skip + at - f->iss, seq - f->iss, len);
            }
        }
    }
    if (len > again) {
        uint32_t more = len - again;

        if (f->has_fin) {
            return mn_ck_flow_violation(c, f, now_ns, "nothing is sent behind a FIN",
                                        "%u bytes at %u, the FIN was at %u", more,
                                        seq + again - f->iss, f->data_end - f->iss);
        }
        ring_room(c, f, more);
        if (more <= f->ring_bytes) {
            ring_put(f, f->data_end, p + again, more);
        }
        f->data_end += more;
        if (more > f->ring_bytes) {
            f->kept = f->data_end;
        }
    }
    return 0;
}

/* SYN: a connection begins, unless it is the same SYN once more. */
static int sent_syn(struct mn_check *c, struct mn_ck_flow *f, const struct mn_tcp *tcp)
{
    if (f->iss != tcp->seq || f->end != tcp->seq + 1 || !f->has_look) {
        mn_ck_ring_drop(c, f);
        f->iss = tcp->seq;
        f->end = f->data_end = f->kept = tcp->seq + 1;
        f->has_fin = f->has_look = false;
    }
    f->has_syn = true;
    f->has_ack = f->has_edge = f->scaled = false;
    return 0;
}

static int sent_ack(struct mn_check *c, struct mn_ck_flow *f, const struct mn_tcp *tcp,
                    uint64_t now_ns)
{
    uint32_t edge = tcp->ack + ((uint32_t)tcp->wnd << f->wscale);

    if (f->has_ack && mn_seq_lt(tcp->ack, f->ack)) {
        return mn_ck_flow_violation(c, f, now_ns, "acknowledgements only go forward",
                                    "back by %u, to %u", f->ack - tcp->ack, tcp->ack);
    }
    f->ack = tcp->ack;
    f->has_ack = true;
    if (!f->scaled) {
        return 0;
    }
    if (f->has_edge && mn_seq_lt(edge, f->edge)) {
        return mn_ck_flow_violation(c, f, now_ns, "the right edge of the window never retreats",
                                    "by %u bytes, to a window of %u at %u", f->edge - edge,
                                    edge - tcp->ack, tcp->ack);
    }
    f->edge = edge;
    f->has_edge = true;
    return 0;
}

static int sent_segment(struct mn_check *c, struct mn_ck_flow *f, const struct mn_tcp *tcp,
                        uint64_t now_ns)
{
    bool fin = (tcp->flags & MN_TCP_FIN) != 0;
    uint32_t end = tcp->seq + tcp->payload_len + fin;
    int rc;

    if (mn_seq_gt(tcp->seq, f->data_end) && !f->has_fin) {
        /* What is between was given up before it could leave: no address of the next hop. */
        f->data_end = f->kept = tcp->seq;
    }
    rc = sent_bytes(c, f, tcp->seq, tcp->payload, tcp->payload_len, now_ns);
    if (rc < 0) {
        return rc;
    }
    if (fin && (mn_seq_lt(end - 1, f->data_end) || (f->has_fin && end != f->end))) {
        return mn_ck_flow_violation(c, f, now_ns, "a FIN is behind all data, and stays where it is",
                                    "at %u, after %u", end - 1 - f->iss, f->data_end - f->iss);
    }
    f->has_fin = f->has_fin || fin;
    f->end = mn_seq_max(f->end, end);
    return sent_ack(c, f, tcp, now_ns);
}

static bool parse_ip(const uint8_t *frame, uint32_t len, struct mn_ipv4 *ip)
{
    return len > MN_ETH_HLEN && mn_rd16be(frame + 12) == MN_ETHERTYPE_IPV4 &&
           mn_ipv4_parse(frame + MN_ETH_HLEN, len - MN_ETH_HLEN, ip) == 0;
}

static bool parse(const uint8_t *frame, uint32_t len, struct mn_check_conn *k, struct mn_tcp *tcp)
{
    struct mn_ipv4 ip;

    if (!parse_ip(frame, len, &ip) || ip.proto != MN_IPPROTO_TCP ||
        mn_tcp_parse(ip.payload, ip.payload_len, tcp) != 0) {
        return false;
    }
    *k = (struct mn_check_conn){ip.src, ip.dst, tcp->sport, tcp->dport, 0};
    return true;
}

/* DATA of the message transport that is not empty. */
static bool parse_mnp(const uint8_t *frame, uint32_t len, struct mn_check_conn *k)
{
    struct mn_ipv4 ip;
    struct mn_udp udp;
    struct mn_mnp mnp;

    if (!parse_ip(frame, len, &ip) || ip.proto != MN_IPPROTO_UDP ||
        mn_udp_parse(ip.payload, ip.payload_len, &udp) != 0 ||
        mn_mnp_parse(udp.payload, udp.payload_len, &mnp) != 0 || mnp.kind != MN_MNP_DATA) {
        return false;
    }
    *k = (struct mn_check_conn){ip.src, ip.dst, udp.sport, udp.dport, 1};
    return mnp.payload_len > 0;
}

void mn_check_foreign(struct mn_check *c, const uint8_t *frame, uint32_t len)
{
    struct mn_check_conn k;
    struct mn_tcp tcp;

    if ((parse(frame, len, &k, &tcp) && tcp.payload_len > 0) || parse_mnp(frame, len, &k)) {
        mn_ck_stream_leave(c->streams, &k);
    }
}

int mn_check_frame(struct mn_check *c, uint32_t node, const uint8_t *frame, uint32_t len,
                   uint64_t now_ns)
{
    struct mn_ipv4 ip;
    struct mn_tcp tcp;
    struct mn_ck_flow *f;
    int rc;

    c->stats.frames++;
    if (c->text[0] != '\0' || !parse_ip(frame, len, &ip)) {
        return 0;
    }
    if (ip.proto == MN_IPPROTO_UDP) {
        return mn_ck_mnp_sent(c, node, &ip, now_ns);
    }
    if (ip.proto != MN_IPPROTO_TCP || mn_tcp_parse(ip.payload, ip.payload_len, &tcp) != 0 ||
        (tcp.flags & MN_TCP_RST) != 0) {
        return 0; /* resets may belong to no connection */
    }
    const struct mn_check_conn k = {ip.src, ip.dst, tcp.sport, tcp.dport, 0};
    f = mn_ck_flow_get(c, node, &k, tcp.seq);
    if (f == NULL) {
        return 0;
    }
    rc = (tcp.flags & MN_TCP_SYN) != 0 ? sent_syn(c, f, &tcp) : sent_segment(c, f, &tcp, now_ns);
    mn_ck_touch(c, f);
    return rc;
}

void mn_check_arrived(struct mn_check *c, uint32_t node, const uint8_t *frame, uint32_t len)
{
    struct mn_ipv4 ip;

    /* TCP's invariants do without: seen from far, its frames cost next to nothing. */
    if (len > MN_ETH_HLEN + MN_IPV4_HLEN && frame[MN_ETH_HLEN + 9] == MN_IPPROTO_UDP &&
        c->text[0] == '\0' && parse_ip(frame, len, &ip) && ip.proto == MN_IPPROTO_UDP) {
        mn_ck_mnp_arrived(c, node, &ip);
    }
}
