/* SPDX-License-Identifier: MIT */
#include "mnp.h"

/* Offsets from the start of the header. */
enum {
    AT_NET_FLAGS = 2,
    AT_MSG_FLAGS = 3,
    AT_SEQ = 4,
    AT_ACK = 8,
    AT_SACK = 12, /* and what extended mode has there in other packets */
    AT_VERSION = 16,
    AT_FEATS = 18,
    AT_MSS = 20,
    AT_SYN_WND = 22,
    AT_WND = 44,
    AT_TSVAL = 46,
    AT_TSECR = 50,
};

static_assert(AT_SACK + 8 * MN_MNP_SACK_LEN == AT_WND, "four words of bitmap");
static_assert(AT_TSECR + 4 == MN_MNP_HLEN, "the two halves of the original's timestamp are last");
static_assert(64 * MN_MNP_SACK_LEN == MN_MNP_WND_MAX, "a bit for each packet of a window");

static bool is_known(uint8_t kind)
{
    return kind <= MN_MNP_FIN || kind == MN_MNP_RST;
}

static void sack_read(const uint8_t *p, uint64_t out[MN_MNP_SACK_LEN])
{
    for (uint32_t i = 0; i < MN_MNP_SACK_LEN; i++) {
        out[i] = (uint64_t)mn_rd32be(p + 8 * i) << 32 | mn_rd32be(p + 8 * i + 4);
    }
}

int mn_mnp_parse(const uint8_t *p, uint32_t len, struct mn_mnp *out)
{
    if (MN_UNLIKELY(len < MN_MNP_HLEN)) {
        return MN_WIRE_TRUNCATED;
    }
    if (MN_UNLIKELY(mn_rd16be(p) != MN_MNP_MAGIC)) {
        return MN_WIRE_BAD_VERSION;
    }
    out->kind = p[AT_NET_FLAGS];
    if (MN_UNLIKELY(!is_known(out->kind))) {
        return MN_WIRE_UNSUPPORTED;
    }
    out->msg_flags = p[AT_MSG_FLAGS];
    out->seq = mn_rd32be(p + AT_SEQ);
    out->ack = mn_rd32be(p + AT_ACK);
    out->word12 = mn_rd32be(p + AT_SACK);
    out->version = p[AT_VERSION];
    out->feats = mn_rd16be(p + AT_FEATS);
    out->mss = mn_rd16be(p + AT_MSS);
    out->syn_wnd = mn_rd16be(p + AT_SYN_WND);
    sack_read(p + AT_SACK, out->sack);
    out->wnd = mn_rd16be(p + AT_WND);
    out->tsval = mn_rd32be(p + AT_TSVAL);
    out->tsecr = mn_rd32be(p + AT_TSECR);
    out->hdr_len = MN_MNP_HLEN;
    out->payload = p + MN_MNP_HLEN;
    out->payload_len = len - MN_MNP_HLEN;
    return 0;
}

static void emit_extended(uint8_t *p, const struct mn_mnp_repr *r)
{
    mn_wr32be(p + AT_TSVAL, r->tsval);
    mn_wr32be(p + AT_TSECR, r->tsecr);
    switch (r->kind) {
    case MN_MNP_SYN:
    case MN_MNP_SYNACK:
        mn_wr32be(p + AT_SACK, MN_MNP_MARKER);
        p[AT_VERSION] = r->version;
        mn_wr16be(p + AT_FEATS, r->feats);
        mn_wr16be(p + AT_MSS, r->mss);
        mn_wr16be(p + AT_SYN_WND, r->wnd);
        return;
    case MN_MNP_DATA:
    case MN_MNP_RST:
        mn_wr32be(p + AT_SACK, r->word12);
        break;
    default:
        for (uint32_t i = 0; r->sack != NULL && i < MN_MNP_SACK_LEN; i++) {
            mn_wr32be(p + AT_SACK + 8 * i, (uint32_t)(r->sack[i] >> 32));
            mn_wr32be(p + AT_SACK + 8 * i + 4, (uint32_t)r->sack[i]);
        }
        break;
    }
    mn_wr16be(p + AT_WND, r->wnd);
}

uint32_t mn_mnp_emit(uint8_t *p, const struct mn_mnp_repr *r)
{
    memset(p, 0, MN_MNP_HLEN);
    mn_wr16be(p, MN_MNP_MAGIC);
    p[AT_NET_FLAGS] = r->kind;
    p[AT_MSG_FLAGS] = r->msg_flags;
    mn_wr32be(p + AT_SEQ, r->seq);
    mn_wr32be(p + AT_ACK, r->ack);
    if (r->ext) {
        emit_extended(p, r);
    }
    return MN_MNP_HLEN;
}
