/* SPDX-License-Identifier: MIT */
/* SipHash-1-3 over two or three 64-bit words, by Aumasson and Bernstein's description: keyed, so
 * that a peer cannot aim at one bucket. */
#ifndef MN_SIPHASH_H
#define MN_SIPHASH_H

#include "base.h"

struct mn_sip {
    uint64_t a, b, c, d;
};

static inline uint64_t mn_rotl64(uint64_t x, unsigned n)
{
    return x << n | x >> (64 - n);
}

static inline void mn_sip_round(struct mn_sip *s)
{
    s->a += s->b;
    s->b = mn_rotl64(s->b, 13) ^ s->a;
    s->a = mn_rotl64(s->a, 32);
    s->c += s->d;
    s->d = mn_rotl64(s->d, 16) ^ s->c;
    s->a += s->d;
    s->d = mn_rotl64(s->d, 21) ^ s->a;
    s->c += s->b;
    s->b = mn_rotl64(s->b, 17) ^ s->c;
    s->c = mn_rotl64(s->c, 32);
}

static inline void mn_sip_word(struct mn_sip *s, uint64_t m)
{
    s->d ^= m;
    mn_sip_round(s);
    s->a ^= m;
}

static inline uint64_t mn_siphash2(const uint64_t key[2], uint64_t m0, uint64_t m1)
{
    struct mn_sip s = {key[0] ^ 0x736f6d6570736575ULL, key[1] ^ 0x646f72616e646f6dULL,
                       key[0] ^ 0x6c7967656e657261ULL, key[1] ^ 0x7465646279746573ULL};

    mn_sip_word(&s, m0);
    mn_sip_word(&s, m1);
    mn_sip_word(&s, UINT64_C(16) << 56);
    s.c ^= 0xff;
    mn_sip_round(&s);
    mn_sip_round(&s);
    mn_sip_round(&s);
    return s.a ^ s.b ^ s.c ^ s.d;
}

/* A connection's addresses and ports as two words; `use` keeps the purposes apart (flow table, ISN,
 * ports, timestamps). */
static inline uint64_t mn_siphash_flow(const uint64_t key[2], uint32_t laddr, uint16_t lport,
                                       uint32_t raddr, uint16_t rport, uint32_t use)
{
    return mn_siphash2(key, (uint64_t)laddr << 32 | raddr,
                       (uint64_t)use << 32 | (uint32_t)lport << 16 | rport);
}

#endif
