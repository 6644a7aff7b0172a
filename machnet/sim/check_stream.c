/* SPDX-License-Identifier: MIT */
/* What one application gives is what the other takes: from the first byte on, in order, once. */
#include "check_int.h"
#include "prefix.h"

#include <stdio.h>
#include <stdlib.h>

#define BUCKETS   4096u /* a power of two */
#define MARKS_MIN 64u
/* Pieces given and not taken, of one direction. */
#define MARKS_MAX (1u << 16)

/* Where a piece that was given ends, and the hash of everything up to there. */
struct mark {
    uint64_t end, digest;
};

/* One direction of a connection. */
struct stream {
    struct stream *next;      /* in its bucket */
    struct mn_check_conn key; /* as the giver sees it */
    uint64_t giver, taker;    /* their ids, 0: not known yet */
    uint64_t taker_before;    /* of the connection before: it may still take what is left of that */
    bool followed, framed;
    struct mn_prefix given, taken;
    /* Marks of what is not taken completely: n from `head` on, of a circle of `cap`. */
    struct mark *marks;
    uint32_t head, n, cap;
};

struct mn_ck_streams {
    struct stream *buckets[BUCKETS];
    uint32_t n, max;
    uint64_t bytes, delivered, unfollowed;
};

struct mn_ck_streams *mn_ck_streams_new(uint32_t streams_max)
{
    struct mn_ck_streams *all = calloc(1, sizeof(*all));

    if (all != NULL) {
        all->max = streams_max;
    }
    return all;
}

void mn_ck_streams_free(struct mn_ck_streams *all)
{
    for (uint32_t i = 0; i < BUCKETS; i++) {
        while (all->buckets[i] != NULL) {
            struct stream *s = all->buckets[i];

            all->buckets[i] = s->next;
            free(s->marks);
            free(s);
        }
    }
    free(all);
}

void mn_ck_streams_stats(const struct mn_ck_streams *all, struct mn_check_stats *out)
{
    out->delivered += all->delivered;
    out->unfollowed += all->unfollowed;
    out->mem_bytes += all->bytes;
}

static struct stream **stream_at(struct mn_ck_streams *all, const struct mn_check_conn *key)
{
    uint64_t h = ((uint64_t)key->laddr << 32 | key->raddr) * UINT64_C(0x9e3779b97f4a7c15);
    struct stream **at;

    h = (h ^ h >> 32 ^ ((uint64_t)key->lport << 16 | key->rport)) * UINT64_C(0xff51afd7ed558ccd);
    at = &all->buckets[h >> 40 & (BUCKETS - 1)];
    while (*at != NULL && ((*at)->key.laddr != key->laddr || (*at)->key.raddr != key->raddr ||
                           (*at)->key.lport != key->lport || (*at)->key.rport != key->rport ||
                           (*at)->key.udp != key->udp)) {
        at = &(*at)->next;
    }
    return at;
}

static void stop(struct mn_ck_streams *all, struct stream *s)
{
    free(s->marks);
    all->bytes -= s->cap * sizeof(struct mark);
    s->marks = NULL;
    s->head = s->n = s->cap = 0;
    s->followed = false;
}

/* Room for one more; false: there is none, and the last may have to stand for the new one too. */
static bool reserve(struct mn_ck_streams *all, struct stream *s)
{
    uint32_t cap = s->cap == 0 ? MARKS_MIN : 2 * s->cap;
    struct mark *marks;

    if (s->n < s->cap) {
        return true;
    }
    marks = cap <= MARKS_MAX ? malloc(cap * sizeof(struct mark)) : NULL;
    if (marks == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < s->n; i++) {
        marks[i] = s->marks[(s->head + i) % s->cap];
    }
    free(s->marks);
    all->bytes += (cap - s->cap) * sizeof(struct mark);
    s->marks = marks;
    s->head = 0;
    s->cap = cap;
    return true;
}

/* A connection between addresses that have had one: what its taker has not taken is not for the
 * new one's. Who that old taker is must be known, or nobody can tell them apart. */
static void renew(struct mn_ck_streams *all, struct stream *s, uint64_t giver, bool framed)
{
    bool clear = s->n == 0 || s->taker != 0;

    stop(all, s);
    s->followed = clear;
    s->taker_before = s->taker;
    s->taker = 0;
    s->giver = giver;
    s->framed = framed;
    s->given = s->taken = (struct mn_prefix){0};
}

void mn_ck_stream_given(struct mn_ck_streams *all, const struct mn_check_conn *conn, uint64_t id,
                        const void *bytes, uint64_t len, bool message)
{
    struct stream **at = stream_at(all, conn);
    struct stream *s = *at;

    if (s == NULL) {
        s = all->n < all->max ? calloc(1, sizeof(*s)) : NULL;
        if (s == NULL) {
            all->unfollowed++;
            return;
        }
        *at = s;
        all->n++;
        s->key = *conn;
    }
    if (s->giver != id) {
        renew(all, s, id, message);
    }
    if (!s->followed) {
        return;
    }
    if (s->framed != message) {
        stop(all, s);
        return;
    }
    mn_prefix_add(&s->given, bytes, len);
    if (!reserve(all, s)) {
        if (message || s->n == 0) {
            stop(all, s);
            return;
        }
        s->n--; /* the last one's end moves on */
    }
    s->marks[(s->head + s->n++) % s->cap] =
        (struct mark){s->given.bytes, mn_prefix_digest(&s->given)};
}

void mn_ck_stream_leave(struct mn_ck_streams *all, const struct mn_check_conn *conn)
{
    struct stream *s = *stream_at(all, conn);

    if (s != NULL) {
        stop(all, s);
    }
}

static bool wrong(const struct stream *s, char *text, size_t size, const char *how, uint64_t is,
                  uint64_t wanted)
{
    char name[MN_CK_NAME_BYTES];

    mn_ck_name(name, s->key.raddr, s->key.rport, s->key.laddr, s->key.lport);
    (void)snprintf(text, size,
                   "%s: what is taken is what the other side gave: %s (%llu, not %llu), after %llu "
                   "bytes",
                   name, how, (unsigned long long)is, (unsigned long long)wanted,
                   (unsigned long long)s->taken.bytes);
    return false;
}

bool mn_ck_stream_taken(struct mn_ck_streams *all, const struct mn_check_conn *conn, uint64_t id,
                        const void *bytes, uint64_t len, bool message, char *text, size_t size)
{
    struct mn_check_conn key = {conn->raddr, conn->laddr, conn->rport, conn->lport, conn->udp};
    struct stream *s = *stream_at(all, &key);
    const uint8_t *at = bytes;

    if (s == NULL || !s->followed || id == s->taker_before || s->framed != message) {
        return true;
    }
    if (s->taker == 0) {
        s->taker = id;
    }
    if (s->taker != id) {
        return true; /* of a connection whose giver does not tell */
    }
    if (message && s->n == 0) {
        return wrong(s, text, size, "a message that it did not give", len, 0);
    }
    if (message && s->marks[s->head].end - s->taken.bytes != len) {
        return wrong(s, text, size, "a message of another length", len,
                     s->marks[s->head].end - s->taken.bytes);
    }
    if (len > s->given.bytes - s->taken.bytes) {
        return wrong(s, text, size, "more bytes than it gave", len,
                     s->given.bytes - s->taken.bytes);
    }
    all->delivered += len;
    while (s->n > 0) {
        const struct mark *m = &s->marks[s->head];
        uint64_t n = mn_min_u64(len, m->end - s->taken.bytes);

        mn_prefix_add(&s->taken, at, n);
        at += n;
        len -= n;
        if (s->taken.bytes < m->end) {
            break;
        }
        if (mn_prefix_digest(&s->taken) != m->digest) {
            return wrong(s, text, size, "other bytes, up to here", s->taken.bytes, m->end);
        }
        s->head = (s->head + 1) % s->cap;
        s->n--;
        if (message) {
            break;
        }
    }
    return true;
}
