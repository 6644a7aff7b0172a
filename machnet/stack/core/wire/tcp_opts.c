/* SPDX-License-Identifier: MIT */
#include "tcp_opts.h"

#define MSS_LEN            4u
#define WSCALE_LEN         3u
#define SACK_PERMITTED_LEN 2u
#define TS_LEN             10u
#define SACK_BLOCK_LEN     8u

static_assert(sizeof(struct mn_sack_block) == SACK_BLOCK_LEN, "as long as on the wire");
static_assert(4 + SACK_BLOCK_LEN * MN_TCP_SACK_MAX <= MN_TCP_OPTS_LEN_MAX, "four blocks fit alone");
static_assert(MN_TCP_OPTS_TS_LEN + 4 + SACK_BLOCK_LEN * 3 == MN_TCP_OPTS_LEN_MAX,
              "three blocks fit beside timestamps");

static void take_sack(const uint8_t *p, uint32_t len, struct mn_tcp_opts *out)
{
    uint32_t n = (len - 2) / SACK_BLOCK_LEN;

    if (out->n_sack != 0) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        out->sack[i].left = mn_rd32be(p + 2 + i * SACK_BLOCK_LEN);
        out->sack[i].right = mn_rd32be(p + 6 + i * SACK_BLOCK_LEN);
    }
    out->n_sack = (uint8_t)n;
}

/* One option of len bytes at p, its kind and length included; false if it is none of ours. */
static bool take_option(const uint8_t *p, uint32_t len, struct mn_tcp_opts *out)
{
    if (p[0] == MN_TCPOPT_MSS && len == MSS_LEN) {
        if (!out->has_mss) {
            out->has_mss = true;
            out->mss = mn_rd16be(p + 2);
        }
    } else if (p[0] == MN_TCPOPT_WSCALE && len == WSCALE_LEN) {
        if (!out->has_wscale) {
            out->has_wscale = true;
            out->wscale = p[2];
        }
    } else if (p[0] == MN_TCPOPT_SACK_PERMITTED && len == SACK_PERMITTED_LEN) {
        out->sack_permitted = true;
    } else if (p[0] == MN_TCPOPT_TS && len == TS_LEN) {
        if (!out->has_ts) {
            out->has_ts = true;
            out->tsval = mn_rd32be(p + 2);
            out->tsecr = mn_rd32be(p + 6);
        }
    } else if (p[0] == MN_TCPOPT_SACK && len > 2 && (len - 2) % SACK_BLOCK_LEN == 0 &&
               len <= 2 + MN_TCP_SACK_MAX * SACK_BLOCK_LEN) {
        take_sack(p, len, out);
    } else {
        return false;
    }
    return true;
}

int mn_tcp_opts_parse_any(const uint8_t *opts, uint32_t len, struct mn_tcp_opts *out)
{
    uint32_t at = 0;

    memset(out, 0, sizeof(*out));
    while (at < len && opts[at] != MN_TCPOPT_EOL) {
        uint32_t left = len - at;
        uint32_t opt_len;

        if (opts[at] == MN_TCPOPT_NOP) {
            at++;
            continue;
        }
        if (left < 2) {
            return MN_WIRE_BAD_OPTION;
        }
        opt_len = opts[at + 1];
        if (opt_len < 2 || opt_len > left) {
            return MN_WIRE_BAD_OPTION;
        }
        if (!take_option(opts + at, opt_len, out) && out->saw_unknown < UINT8_MAX) {
            out->saw_unknown++;
        }
        at += opt_len;
    }
    return 0;
}

static uint32_t emit_ts(uint8_t *p, const struct mn_tcp_opts *opts)
{
    mn_wr32be(p, opts->sack_permitted ? 0x04020000u | (MN_TCPOPT_TS_WORD & 0xffff)
                                      : MN_TCPOPT_TS_WORD);
    mn_wr32be(p + 4, opts->tsval);
    mn_wr32be(p + 8, opts->tsecr);
    return MN_TCP_OPTS_TS_LEN;
}

uint32_t mn_tcp_opts_emit_any(uint8_t *p, const struct mn_tcp_opts *opts)
{
    uint32_t at = 0;
    uint32_t n;

    if (opts->has_mss) {
        mn_wr32be(p, MN_TCPOPT_MSS << 24 | MSS_LEN << 16 | opts->mss);
        at += 4;
    }
    if (opts->has_ts) {
        at += emit_ts(p + at, opts);
    } else if (opts->sack_permitted) {
        mn_wr32be(p + at, 0x01010000u | MN_TCPOPT_SACK_PERMITTED << 8 | SACK_PERMITTED_LEN);
        at += 4;
    }
    if (opts->has_wscale) {
        mn_wr32be(p + at, 0x01000000u | MN_TCPOPT_WSCALE << 16 | WSCALE_LEN << 8 | opts->wscale);
        at += 4;
    }
    MN_ASSERT(opts->n_sack <= MN_TCP_SACK_MAX);
    n = mn_min_u32(opts->n_sack, (MN_TCP_OPTS_LEN_MAX - 4 - at) / SACK_BLOCK_LEN);
    if (n > 0) {
        mn_wr32be(p + at, 0x01010000u | MN_TCPOPT_SACK << 8 | (2 + n * SACK_BLOCK_LEN));
        at += 4;
    }
    for (uint32_t i = 0; i < n; i++) {
        mn_wr32be(p + at, opts->sack[i].left);
        mn_wr32be(p + at + 4, opts->sack[i].right);
        at += SACK_BLOCK_LEN;
    }
    return at;
}
