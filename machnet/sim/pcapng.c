/* SPDX-License-Identifier: MIT */
#include "pcapng.h"

#include <stdlib.h>
#include <unistd.h>

#define BLOCK_SECTION   0x0a0d0d0au
#define BLOCK_INTERFACE 1u
#define BLOCK_PACKET    6u
#define BYTE_ORDER_MARK 0x1a2b3c4du
#define LINK_ETHERNET   1u

#define OPT_END          0u
#define OPT_COMMENT      1u
#define OPT_SHB_USERAPPL 4u
#define OPT_IF_NAME      2u
#define OPT_IF_MAC       6u
#define OPT_IF_TSRESOL   9u
#define OPT_EPB_FLAGS    2u

#define BLOCK_HEAD_BYTES  8u  /* type and length */
#define BLOCK_TAIL_BYTES  4u  /* the length again */
#define PACKET_HEAD_BYTES 20u /* interface, time, two lengths */
#define BUF_BYTES_DEFAULT (256u << 10)
/* After a failed write the next attempts are made once in so many packets. */
#define RETRY_PACKETS 256u

static_assert(MN_PCAPNG_FRAME_MAX + MN_PCAPNG_COMMENT_MAX + 256 < MN_PCAPNG_BUF_BYTES_MIN,
              "every block fits the smallest buffer");

struct mn_pcapng {
    uint8_t *buf;
    uint32_t size;
    uint32_t pos; /* bytes in the buffer */
    /* The buffer's first block when a failed write cut it in two: how much of it is in the file
     * already (0: nothing), and its whole length. */
    uint32_t torn_done;
    uint32_t torn_len;
    uint32_t skip; /* packets to drop until the next attempt to write */
    uint32_t n_ifaces;
    uint32_t *snaplens;
    int fd;
    struct mn_pcapng_stats stats;
};

static uint32_t pad4(uint32_t n)
{
    return (n + 3u) & ~3u;
}

static uint8_t *put16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
    return p + sizeof(v);
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
    return p + sizeof(v);
}

/* Bytes, filled up with zeros to a multiple of four. */
static uint8_t *put_padded(uint8_t *p, const void *bytes, uint32_t len)
{
    memset(p + len, 0, pad4(len) - len);
    memcpy(p, bytes, len);
    return p + pad4(len);
}

static uint8_t *put_option(uint8_t *p, uint16_t code, const void *value, uint32_t len)
{
    p = put16(p, code);
    p = put16(p, (uint16_t)len);
    return put_padded(p, value, len);
}

/* Ends the block that began at w->pos and whose options end at p. */
static void block_end(struct mn_pcapng *w, uint8_t *p)
{
    uint8_t *start = w->buf + w->pos;
    uint32_t len;

    p = put32(p, OPT_END);
    len = (uint32_t)(p - start) + BLOCK_TAIL_BYTES;
    put32(p, len);
    put32(start + 4, len);
    w->pos += len;
}

int mn_pcapng_open(const struct mn_pcapng_config *cfg, struct mn_pcapng **out)
{
    uint32_t size = cfg->buf_bytes != 0 ? cfg->buf_bytes : BUF_BYTES_DEFAULT;
    size_t app_len = cfg->app != NULL ? strlen(cfg->app) : 0;
    struct mn_pcapng *w;
    uint8_t *p;

    if (cfg->fd < 0 || size < MN_PCAPNG_BUF_BYTES_MIN || size > MN_PCAPNG_BUF_BYTES_MAX ||
        app_len > MN_PCAPNG_NAME_MAX) {
        return -EINVAL;
    }
    w = calloc(1, sizeof(*w));
    if (w == NULL) {
        return -ENOMEM;
    }
    w->buf = malloc(size);
    if (w->buf == NULL) {
        free(w);
        return -ENOMEM;
    }
    w->size = size;
    w->fd = cfg->fd;
    p = put32(w->buf, BLOCK_SECTION) + 4;
    p = put32(p, BYTE_ORDER_MARK);
    p = put16(p, 1);
    p = put16(p, 0);
    p = put32(p, UINT32_MAX); /* the section's length, 64 bits: not said */
    p = put32(p, UINT32_MAX);
    if (app_len != 0) {
        p = put_option(p, OPT_SHB_USERAPPL, cfg->app, (uint32_t)app_len);
    }
    block_end(w, p);
    *out = w;
    return 0;
}

/* Removes `done` written bytes from the front of the buffer, and notes when they end in the middle
 * of a block. */
static void consume(struct mn_pcapng *w, uint32_t done)
{
    uint32_t at = 0, len;

    if (w->torn_done != 0) {
        at = w->torn_len - w->torn_done;
        if (done < at) {
            w->torn_done += done;
            at = done;
        } else {
            w->torn_done = 0;
        }
    }
    while (at < done) {
        memcpy(&len, w->buf + at + 4, sizeof(len));
        if (at + len > done) {
            w->torn_done = done - at;
            w->torn_len = len;
            break;
        }
        at += len;
    }
    memmove(w->buf, w->buf + done, w->pos - done);
    w->pos -= done;
}

int mn_pcapng_flush(struct mn_pcapng *w)
{
    uint32_t done = 0;
    int rc = 0;

    while (done < w->pos) {
        ssize_t n = write(w->fd, w->buf + done, w->pos - done);

        if (n > 0) {
            done += (uint32_t)n;
        } else if (n == 0 || errno != EINTR) {
            rc = n == 0 ? -EIO : -errno;
            w->stats.write_errors++;
            w->stats.last_errno = -rc;
            break;
        }
    }
    w->stats.written_bytes += done;
    if (done == w->pos) {
        /* The buffer ends at the end of a block, so nothing is torn any more. */
        w->pos = 0;
        w->torn_done = 0;
    } else {
        consume(w, done);
    }
    return rc;
}

int mn_pcapng_close(struct mn_pcapng *w)
{
    int rc;

    if (w == NULL) {
        return 0;
    }
    rc = mn_pcapng_flush(w);
    if (w->torn_done != 0) {
        off_t end = lseek(w->fd, 0, SEEK_CUR);

        /* A pipe can't take bytes back; the reader sees a torn block then. */
        if (end >= (off_t)w->torn_done && ftruncate(w->fd, end - (off_t)w->torn_done) != 0) {
            w->stats.last_errno = errno;
        }
    }
    if (close(w->fd) != 0 && rc == 0) {
        rc = -errno;
    }
    free(w->snaplens);
    free(w->buf);
    free(w);
    return rc;
}

uint32_t mn_pcapng_space(const struct mn_pcapng *w)
{
    return w->size - w->pos;
}

int mn_pcapng_add_iface(struct mn_pcapng *w, const struct mn_pcapng_iface *iface)
{
    static const uint8_t zero[6];
    const uint8_t tsresol = 9; /* 10^-9 s */
    size_t name_len = iface->name != NULL ? strlen(iface->name) : 0;
    uint32_t snaplen = iface->snaplen != 0 ? iface->snaplen : MN_PCAPNG_FRAME_MAX;
    uint32_t *snaplens;
    uint8_t *p;

    if (name_len == 0 || name_len > MN_PCAPNG_NAME_MAX || snaplen > MN_PCAPNG_FRAME_MAX ||
        w->n_ifaces == MN_PCAPNG_IFACES_MAX) {
        return -EINVAL;
    }
    if (mn_pcapng_space(w) < 64 + pad4((uint32_t)name_len)) {
        (void)mn_pcapng_flush(w);
        if (mn_pcapng_space(w) < 64 + pad4((uint32_t)name_len)) {
            return -ENOSPC;
        }
    }
    snaplens = realloc(w->snaplens, (w->n_ifaces + 1) * sizeof(*snaplens));
    if (snaplens == NULL) {
        return -ENOMEM;
    }
    w->snaplens = snaplens;
    snaplens[w->n_ifaces] = snaplen;
    p = put32(w->buf + w->pos, BLOCK_INTERFACE) + 4;
    p = put16(p, LINK_ETHERNET);
    p = put16(p, 0);
    p = put32(p, snaplen);
    p = put_option(p, OPT_IF_NAME, iface->name, (uint32_t)name_len);
    if (memcmp(iface->mac, zero, sizeof(zero)) != 0) {
        p = put_option(p, OPT_IF_MAC, iface->mac, sizeof(iface->mac));
    }
    p = put_option(p, OPT_IF_TSRESOL, &tsresol, sizeof(tsresol));
    block_end(w, p);
    return (int)w->n_ifaces++;
}

uint32_t mn_pcapng_snaplen(const struct mn_pcapng *w, uint32_t iface)
{
    MN_ASSERT(iface < w->n_ifaces);
    return w->snaplens[iface];
}

/* Length of the comment as it is written: cut at the limit, between two characters. */
static uint32_t comment_cut(const char *comment, uint32_t len)
{
    if (comment == NULL || len <= MN_PCAPNG_COMMENT_MAX) {
        return comment == NULL ? 0 : len;
    }
    len = MN_PCAPNG_COMMENT_MAX;
    while (len > 0 && ((uint8_t)comment[len] & 0xc0) == 0x80) {
        len--;
    }
    return len;
}

uint32_t mn_pcapng_block_bytes(uint32_t cap_len, uint32_t comment_len)
{
    uint32_t flags_bytes = 8, end_bytes = 4;
    uint32_t comment_bytes =
        comment_len != 0 ? 4 + pad4(mn_min_u32(comment_len, MN_PCAPNG_COMMENT_MAX)) : 0;

    return BLOCK_HEAD_BYTES + PACKET_HEAD_BYTES + pad4(cap_len) + flags_bytes + comment_bytes +
           end_bytes + BLOCK_TAIL_BYTES;
}

bool mn_pcapng_make_room(struct mn_pcapng *w, uint32_t need)
{
    if (MN_LIKELY(mn_pcapng_space(w) >= need)) {
        return true;
    }
    if (w->skip > 0) {
        w->skip--;
    } else {
        (void)mn_pcapng_flush(w);
        if (mn_pcapng_space(w) >= need) {
            return true;
        }
        w->skip = RETRY_PACKETS;
    }
    return false;
}

void mn_pcapng_count_drop(struct mn_pcapng *w)
{
    w->stats.dropped++;
}

uint8_t *mn_pcapng_packet(struct mn_pcapng *w, const struct mn_pcapng_pkt *pkt)
{
    uint32_t comment_len = comment_cut(pkt->comment, pkt->comment_len);
    uint8_t *p, *bytes;

    MN_ASSERT(pkt->iface < w->n_ifaces);
    if (pkt->cap_len > MN_PCAPNG_FRAME_MAX ||
        !mn_pcapng_make_room(w, mn_pcapng_block_bytes(pkt->cap_len, comment_len))) {
        mn_pcapng_count_drop(w);
        return NULL;
    }
    p = put32(w->buf + w->pos, BLOCK_PACKET) + 4;
    p = put32(p, pkt->iface);
    p = put32(p, (uint32_t)(pkt->t_ns >> 32));
    p = put32(p, (uint32_t)pkt->t_ns);
    p = put32(p, pkt->cap_len);
    p = put32(p, pkt->orig_len);
    bytes = p;
    p += pad4(pkt->cap_len);
    memset(bytes + pkt->cap_len, 0, pad4(pkt->cap_len) - pkt->cap_len);
    p = put_option(p, OPT_EPB_FLAGS, &(uint32_t){pkt->dir & 3u}, 4);
    if (comment_len != 0) {
        p = put_option(p, OPT_COMMENT, pkt->comment, comment_len);
    }
    block_end(w, p);
    w->stats.packets++;
    return bytes;
}

int mn_pcapng_write(struct mn_pcapng *w, const struct mn_pcapng_pkt *pkt, const uint8_t *bytes)
{
    uint8_t *p = mn_pcapng_packet(w, pkt);

    if (p == NULL) {
        return -ENOSPC;
    }
    memcpy(p, bytes, pkt->cap_len);
    return 0;
}

void mn_pcapng_get_stats(const struct mn_pcapng *w, struct mn_pcapng_stats *out)
{
    *out = w->stats;
}

struct mn_pcapng_mark mn_pcapng_mark(const struct mn_pcapng *w)
{
    return (struct mn_pcapng_mark){
        .pos = w->pos,
        .packets = w->stats.packets,
        .dropped = w->stats.dropped,
    };
}

void mn_pcapng_rollback(struct mn_pcapng *w, struct mn_pcapng_mark mark)
{
    MN_ASSERT(mark.pos <= w->pos);
    w->pos = mark.pos;
    w->stats.packets = mark.packets;
    w->stats.dropped = mark.dropped;
}
