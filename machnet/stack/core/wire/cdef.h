/* SPDX-License-Identifier: MIT */
/* What Python sees of base.h and of the wire views, for tests. */

uint32_t mn_min_u32(uint32_t a, uint32_t b);
uint32_t mn_max_u32(uint32_t a, uint32_t b);
uint64_t mn_min_u64(uint64_t a, uint64_t b);
uint64_t mn_max_u64(uint64_t a, uint64_t b);
uint16_t mn_rd16be(const uint8_t *p);
uint32_t mn_rd32be(const uint8_t *p);
void mn_wr16be(uint8_t *p, uint16_t v);
void mn_wr32be(uint8_t *p, uint32_t v);
bool mn_seq_lt(uint32_t a, uint32_t b);
bool mn_seq_le(uint32_t a, uint32_t b);
bool mn_seq_gt(uint32_t a, uint32_t b);
bool mn_seq_ge(uint32_t a, uint32_t b);
uint32_t mn_seq_max(uint32_t a, uint32_t b);
uint32_t mn_seq_min(uint32_t a, uint32_t b);

#define MN_WIRE_TRUNCATED   ...
#define MN_WIRE_BAD_VERSION ...
#define MN_WIRE_BAD_LENGTH  ...
#define MN_WIRE_BAD_CSUM    ...
#define MN_WIRE_UNSUPPORTED ...
#define MN_WIRE_FRAGMENT    ...
#define MN_WIRE_BAD_ADDR    ...
#define MN_WIRE_BAD_OPTION  ...

#define MN_CPU_AVX2          ...
#define MN_CSUM_INLINE_BYTES ...

void mn_csum_select(uint32_t features);
uint32_t mn_csum_partial(const uint8_t *p, uint32_t len, uint32_t sum);
uint32_t mn_csum_copy(uint8_t *dst, const uint8_t *src, uint32_t len, uint32_t sum);
uint32_t mn_csum_add(uint32_t a, uint32_t b);
uint32_t mn_csum_shift(uint32_t sum);
uint16_t mn_csum_fold_seed(uint32_t sum);
uint16_t mn_csum_fold(uint32_t sum);
uint32_t mn_csum_pseudo(uint32_t src, uint32_t dst, uint8_t proto, uint32_t len);
uint16_t mn_csum_update16(uint16_t csum, uint16_t was, uint16_t now);

struct mn_eth {
    uint8_t dst[6];
    uint8_t src[6];
    uint16_t type;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
bool mn_eth_is_group(const uint8_t *mac);
int mn_eth_parse(const uint8_t *p, uint32_t len, struct mn_eth *out);
uint32_t mn_eth_emit(uint8_t *p, const uint8_t *dst, const uint8_t *src, uint16_t type);

struct mn_ipv4 {
    uint32_t src;
    uint32_t dst;
    uint16_t total_len;
    uint16_t id;
    uint16_t frag;
    uint16_t csum;
    uint8_t ihl;
    uint8_t tos;
    uint8_t ttl;
    uint8_t proto;
    uint32_t hdr_len;
    uint32_t opts_len;
    const uint8_t *opts;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
struct mn_ipv4_repr {
    uint32_t src;
    uint32_t dst;
    uint32_t payload_len;
    uint16_t id;
    uint8_t proto;
    uint8_t ttl;
    uint8_t tos;
    bool df;
    ...;
};
bool mn_ip_is_multicast(uint32_t ip);
bool mn_ip_is_loopback(uint32_t ip);
bool mn_ip_is_unspecified(uint32_t ip);
bool mn_ip_is_limited_broadcast(uint32_t ip);
bool mn_ip_is_martian_source(uint32_t ip);
int mn_ipv4_parse(const uint8_t *p, uint32_t len, struct mn_ipv4 *out);
uint32_t mn_ipv4_emit(uint8_t *p, const struct mn_ipv4_repr *r);

struct mn_arp {
    uint32_t sender_ip;
    uint32_t target_ip;
    uint16_t op;
    uint8_t sender_mac[6];
    uint8_t target_mac[6];
    ...;
};
int mn_arp_parse(const uint8_t *p, uint32_t len, struct mn_arp *out);
uint32_t mn_arp_emit(uint8_t *p, const struct mn_arp *arp);

#define MN_ICMP_ERROR_LEN_MAX ...

struct mn_icmp {
    uint8_t type;
    uint8_t code;
    uint16_t csum;
    uint32_t rest;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
struct mn_icmp_quote {
    uint32_t src;
    uint32_t dst;
    uint16_t total_len;
    uint8_t proto;
    uint8_t ttl;
    uint16_t sport;
    uint16_t dport;
    uint32_t seq;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
bool mn_icmp_is_error(uint8_t type);
int mn_icmp_parse(const uint8_t *p, uint32_t len, struct mn_icmp *out);
int mn_icmp_quote_parse(const uint8_t *p, uint32_t len, struct mn_icmp_quote *out);
uint32_t mn_icmp_emit(uint8_t *p, const struct mn_icmp *icmp);
uint32_t mn_icmp_emit_echo_reply(uint8_t *p, const struct mn_icmp *request);
uint32_t mn_icmp_emit_unreachable(uint8_t *p, uint8_t code, uint16_t mtu, const uint8_t *ip,
                                  uint32_t ip_len);

struct mn_udp {
    uint16_t sport;
    uint16_t dport;
    uint16_t len;
    uint16_t csum;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
struct mn_udp_repr {
    uint16_t sport;
    uint16_t dport;
    uint32_t payload_len;
    ...;
};
int mn_udp_parse(const uint8_t *p, uint32_t len, struct mn_udp *out);
bool mn_udp_csum_ok(uint32_t src, uint32_t dst, const uint8_t *p, uint32_t len);
uint32_t mn_udp_emit(uint8_t *p, const struct mn_udp_repr *r);
void mn_udp_csum_fill(uint8_t *p, uint32_t src, uint32_t dst, uint32_t payload_sum);

#define MN_TCP_OPTS_LEN_MAX ...

struct mn_sack_block {
    uint32_t left;
    uint32_t right;
};
struct mn_tcp_opts {
    bool has_mss;
    bool has_wscale;
    bool sack_permitted;
    bool has_ts;
    uint8_t wscale;
    uint8_t n_sack;
    uint8_t saw_unknown;
    uint16_t mss;
    uint32_t tsval;
    uint32_t tsecr;
    struct mn_sack_block sack[4];
    ...;
};
uint8_t mn_tcp_wscale_clamp(uint8_t wscale);
int mn_tcp_opts_parse(const uint8_t *opts, uint32_t len, struct mn_tcp_opts *out);
int mn_tcp_opts_parse_any(const uint8_t *opts, uint32_t len, struct mn_tcp_opts *out);
uint32_t mn_tcp_opts_emit(uint8_t *p, const struct mn_tcp_opts *opts);
uint32_t mn_tcp_opts_emit_any(uint8_t *p, const struct mn_tcp_opts *opts);

struct mn_tcp {
    uint16_t sport;
    uint16_t dport;
    uint32_t seq;
    uint32_t ack;
    uint16_t flags;
    uint16_t wnd;
    uint16_t urg;
    uint16_t csum;
    uint8_t doff;
    uint32_t hdr_len;
    uint32_t opts_len;
    const uint8_t *opts;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
struct mn_tcp_repr {
    uint16_t sport;
    uint16_t dport;
    uint32_t seq;
    uint32_t ack;
    uint16_t flags;
    uint16_t wnd;
    uint16_t urg;
    const struct mn_tcp_opts *opts;
    ...;
};
int mn_tcp_parse(const uint8_t *p, uint32_t len, struct mn_tcp *out);
bool mn_tcp_csum_ok(uint32_t src, uint32_t dst, const uint8_t *seg, uint32_t len);
uint32_t mn_tcp_emit(uint8_t *p, const struct mn_tcp_repr *r);
void mn_tcp_csum_fill(uint8_t *p, uint32_t hdr_len, uint32_t src, uint32_t dst,
                      uint32_t payload_len, uint32_t payload_sum);
void mn_tcp_csum_seed(uint8_t *p, uint32_t src, uint32_t dst, uint32_t len);

#define MN_MNP_HLEN    ...
#define MN_MNP_MSS     ...
#define MN_MNP_MSS_MIN ...
#define MN_MNP_MSS_MAX ...
#define MN_MNP_MARKER  ...
#define MN_MNP_VERSION ...
#define MN_MNP_F_ALL   ...

struct mn_mnp {
    uint8_t kind;
    uint8_t msg_flags;
    uint32_t seq;
    uint32_t ack;
    uint32_t word12;
    uint8_t version;
    uint16_t feats;
    uint16_t mss;
    uint16_t syn_wnd;
    uint64_t sack[4];
    uint16_t wnd;
    uint32_t tsval, tsecr;
    uint32_t hdr_len;
    const uint8_t *payload;
    uint32_t payload_len;
    ...;
};
struct mn_mnp_repr {
    uint8_t kind;
    uint8_t msg_flags;
    bool ext;
    uint32_t seq;
    uint32_t ack;
    uint32_t word12;
    uint8_t version;
    uint16_t feats;
    uint16_t mss;
    uint16_t wnd;
    const uint64_t *sack;
    uint32_t tsval, tsecr;
    ...;
};
int mn_mnp_parse(const uint8_t *p, uint32_t len, struct mn_mnp *out);
uint32_t mn_mnp_emit(uint8_t *p, const struct mn_mnp_repr *r);
