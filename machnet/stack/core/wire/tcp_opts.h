/* SPDX-License-Identifier: MIT */
/* TCP options (RFC 9293, 3.2): MSS, window scale and timestamps (RFC 7323), SACK (RFC 2018). */
#ifndef MN_WIRE_TCP_OPTS_H
#define MN_WIRE_TCP_OPTS_H

#include "../base.h"
#include "err.h"

#define MN_TCP_OPTS_LEN_MAX 40u
#define MN_TCP_OPTS_TS_LEN  12u /* the common form: NOP NOP timestamps */
#define MN_TCP_SACK_MAX     4u
#define MN_TCP_WSCALE_MAX   14u

#define MN_TCPOPT_EOL            0u
#define MN_TCPOPT_NOP            1u
#define MN_TCPOPT_MSS            2u
#define MN_TCPOPT_WSCALE         3u
#define MN_TCPOPT_SACK_PERMITTED 4u
#define MN_TCPOPT_SACK           5u
#define MN_TCPOPT_TS             8u

/* NOP NOP kind 8 length 10, as one big-endian word. */
#define MN_TCPOPT_TS_WORD 0x0101080au

struct mn_sack_block {
    uint32_t left;
    uint32_t right; /* the first sequence number behind the block */
};

/* What a segment carried, as it carried it: which options count in which state is for the caller
 * (MSS, window scale and SACK-permitted on SYNs only; SACK blocks may lie anywhere). */
struct mn_tcp_opts {
    bool has_mss;
    bool has_wscale;
    bool sack_permitted;
    bool has_ts;
    uint8_t wscale;      /* raw: see mn_tcp_wscale_clamp */
    uint8_t n_sack;      /* blocks in sack[]; those behind it are unspecified */
    uint8_t saw_unknown; /* options skipped: unknown kinds, and known ones of a wrong length */
    uint16_t mss;        /* raw, 0 to 65535 */
    uint32_t tsval;
    uint32_t tsecr;
    struct mn_sack_block sack[MN_TCP_SACK_MAX];
};

/* RFC 7323, 2.3: a shift above 14 is taken as 14. */
static inline uint8_t mn_tcp_wscale_clamp(uint8_t wscale)
{
    return wscale > MN_TCP_WSCALE_MAX ? MN_TCP_WSCALE_MAX : wscale;
}

int mn_tcp_opts_parse_any(const uint8_t *opts, uint32_t len, struct mn_tcp_opts *out);
uint32_t mn_tcp_opts_emit_any(uint8_t *p, const struct mn_tcp_opts *opts);

/* Reads the option area of a header. Of an option that comes twice the first counts. A known kind
 * with a wrong length is skipped like an unknown one. An illegal length (0, 1, past the end) ends
 * the parse with BAD_OPTION; what came before it stands in `out`, so the caller may go on with
 * that. `out` is always filled in. Unknown kinds count up to 40, one per option. */
static inline int mn_tcp_opts_parse(const uint8_t *opts, uint32_t len, struct mn_tcp_opts *out)
{
    if (MN_LIKELY(len == MN_TCP_OPTS_TS_LEN && mn_rd32be(opts) == MN_TCPOPT_TS_WORD)) {
        memset(out, 0, offsetof(struct mn_tcp_opts, tsval));
        out->has_ts = true;
        out->tsval = mn_rd32be(opts + 4);
        out->tsecr = mn_rd32be(opts + 8);
        return 0;
    }
    return mn_tcp_opts_parse_any(opts, len, out);
}

/* Writes the options in blocks aligned to 4 bytes (NOPs in front, so there is never padding behind)
 * and returns their length, 0 to 40: MSS; SACK-permitted and timestamps; window scale; SACK blocks,
 * as many of n_sack as still fit (3 beside timestamps). */
static inline uint32_t mn_tcp_opts_emit(uint8_t *p, const struct mn_tcp_opts *opts)
{
    if (MN_LIKELY(opts->has_ts && !opts->has_mss && !opts->has_wscale && !opts->sack_permitted &&
                  opts->n_sack == 0)) {
        mn_wr32be(p, MN_TCPOPT_TS_WORD);
        mn_wr32be(p + 4, opts->tsval);
        mn_wr32be(p + 8, opts->tsecr);
        return MN_TCP_OPTS_TS_LEN;
    }
    return mn_tcp_opts_emit_any(p, opts);
}

#endif
