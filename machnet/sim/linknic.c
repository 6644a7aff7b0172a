/* SPDX-License-Identifier: MIT */
#include "linknic.h"

#include "linknic_sock.h"
#include "nickit.h"
#include "pktpool.h"

#include "machnet/stack/core/wire/eth.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#define LINK_MTU_DEFAULT       1500u
#define LINK_POOL_PKTS_DEFAULT 256u
#define LINK_FRAME_MAX         (MN_LINKNIC_MTU_MAX + MN_ETH_HLEN)
/* In front of each frame of a message. */
#define LINK_LEN_BYTES 2u
#define LINK_MSG_MAX   (LINK_FRAME_MAX + LINK_LEN_BYTES)
#define LINK_ROOM      (LINK_FRAME_MAX + 63u)
/* Frames of one message at most, messages of one burst, and pieces of a message. */
#define LINK_MSG_FRAMES 64u
#define LINK_BURST_MAX  8u
#define LINK_PIECES_MAX 128u
/* How long a peer may take nothing before it counts as gone for now. */
#define LINK_STALL_NS 10000000u

static_assert(LINK_FRAME_MAX <= UINT16_MAX, "a frame's length fits in front of it");
static_assert(MN_PKT_HEADROOM_BYTES >= LINK_LEN_BYTES, "the length goes into the headroom");

/* The first message of each end. */
struct link_hello {
    uint8_t magic[4];
    uint8_t version;
    uint8_t zero[3];
    uint8_t mtu[4]; /* big-endian */
};
static_assert(sizeof(struct link_hello) == 12, "part of the wire format");

static const uint8_t hello_magic[4] = {'M', 'N', 'L', 'K'};
#define LINK_VERSION 1u

struct mn_linknic {
    struct mn_nic nic; /* the first member: the operations find the link by it */
    struct mn_pktpool pool;
    struct mn_linknic_sock sock;
    struct mn_pkt *msg; /* a message of several frames, its bytes from data - 2 on, or NULL */
    uint32_t msg_at;    /* where the next of them starts, from data - 2 on */
    uint32_t burst;     /* messages to take before what they brought is handed over */
    uint32_t mtu_frame;
    uint64_t stalled_ns; /* when the other end began to take nothing; 0: it does take */
    struct mn_linknic_stats stats;
};

static uint64_t now_ns(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t frame_len_at(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static void lost(struct mn_linknic *l)
{
    l->nic.link_up = 0;
    l->stalled_ns = 0;
    mn_linknic_sock_lost(&l->sock);
}

static void say_hello(struct mn_linknic *l)
{
    uint32_t mtu = l->nic.caps.mtu;
    struct link_hello hello = {
        .version = LINK_VERSION,
        .mtu = {(uint8_t)(mtu >> 24), (uint8_t)(mtu >> 16), (uint8_t)(mtu >> 8), (uint8_t)mtu},
    };

    memcpy(hello.magic, hello_magic, sizeof(hello_magic));
    if (send(l->sock.conn_fd, &hello, sizeof(hello), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        lost(l);
    }
}

static bool hello_ok(struct mn_linknic *l, const struct link_hello *hello, ssize_t len)
{
    if (len != (ssize_t)sizeof(*hello) ||
        memcmp(hello->magic, hello_magic, sizeof(hello_magic)) != 0 ||
        hello->version != LINK_VERSION) {
        return false;
    }
    l->stats.peer_mtu = (uint32_t)hello->mtu[0] << 24 | (uint32_t)hello->mtu[1] << 16 |
                        (uint32_t)hello->mtu[2] << 8 | hello->mtu[3];
    l->stats.peers++;
    return true;
}

/* Looks for somebody at the other end, and for the first message from there. */
static bool find_peer(struct mn_linknic *l)
{
    while (l->nic.link_up == 0) {
        struct link_hello hello;
        ssize_t n;

        if (l->sock.conn_fd < 0) {
            if (!mn_linknic_sock_seek(&l->sock)) {
                return false;
            }
            say_hello(l);
            continue;
        }
        n = recv(l->sock.conn_fd, &hello, sizeof(hello), MSG_DONTWAIT | MSG_TRUNC);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return false;
        }
        if (n > 0 && hello_ok(l, &hello, n)) {
            l->nic.link_up = 1;
        } else {
            l->stats.rx_bad += n > 0;
            lost(l);
        }
    }
    return true;
}

/* Takes one message from the socket into pkt: its bytes, from data - 2 on; 0: there is none. */
static size_t read_msg(struct mn_linknic *l, struct mn_pkt *pkt)
{
    uint8_t *start = pkt->data - LINK_LEN_BYTES;

    while (MN_LIKELY(l->nic.link_up != 0) || find_peer(l)) {
        ssize_t n = recv(l->sock.conn_fd, start, LINK_MSG_MAX + 1, MSG_DONTWAIT | MSG_TRUNC);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return 0;
        }
        if (n <= 0) {
            lost(l);
        } else {
            l->stats.rx_msgs++;
            /* What was cut off is dropped as other nonsense is, in its turn: a peer that sends
             * nothing else must not hold us here. */
            return MN_LIKELY((size_t)n <= LINK_MSG_MAX) ? (size_t)n : 1;
        }
    }
    return 0;
}

static void got_frame(struct mn_linknic *l, struct mn_pkt **pkts, uint32_t *got, struct mn_pkt *pkt)
{
    pkts[(*got)++] = pkt;
    l->stats.rx_frames++;
    l->stats.rx_bytes += pkt->len;
}

/* The next frame of l->msg into a packet of its own: false when there is no packet. */
static bool split_one(struct mn_linknic *l, struct mn_pkt **pkts, uint32_t *got)
{
    const uint8_t *at = l->msg->data - LINK_LEN_BYTES + l->msg_at;
    uint32_t left = l->msg->len - l->msg_at;
    uint32_t len = left >= LINK_LEN_BYTES ? frame_len_at(at) : 0;
    struct mn_pkt *pkt = NULL;

    if (MN_UNLIKELY(len < MN_ETH_HLEN || len > left - LINK_LEN_BYTES)) {
        l->stats.rx_bad++;
        l->msg_at = l->msg->len;
    } else {
        pkt = mn_pktpool_get(&l->pool);
        if (pkt == NULL) {
            l->stats.rx_no_pkt++;
            return false;
        }
        memcpy(pkt->data, at + LINK_LEN_BYTES, len);
        pkt->len = len;
        l->msg_at += LINK_LEN_BYTES + len;
        got_frame(l, pkts, got, pkt);
    }
    if (l->msg_at == l->msg->len) {
        mn_pktpool_put(&l->pool, l->msg);
        l->msg = NULL;
    }
    return true;
}

/* One message: false when there is none, or no packet for it. */
static bool take_msg(struct mn_linknic *l, struct mn_pkt **pkts, uint32_t *got)
{
    struct mn_pkt *pkt = mn_pktpool_get(&l->pool);
    size_t len;

    if (MN_UNLIKELY(pkt == NULL)) {
        l->stats.rx_no_pkt++;
        return false;
    }
    len = read_msg(l, pkt);
    if (len == 0) {
        mn_pktpool_put(&l->pool, pkt);
        return false;
    }
    pkt->len = (uint32_t)len;
    /* A frame that came alone is where it shall be. */
    if (len >= LINK_LEN_BYTES + MN_ETH_HLEN &&
        frame_len_at(pkt->data - LINK_LEN_BYTES) == len - LINK_LEN_BYTES) {
        pkt->len -= LINK_LEN_BYTES;
        got_frame(l, pkts, got, pkt);
        return true;
    }
    l->msg = pkt;
    l->msg_at = 0;
    return true;
}

static uint32_t link_rx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_linknic *l = (struct mn_linknic *)nic;
    uint32_t got = 0, msgs = 0;
    bool more = true;

    (void)queue;
    while (got < n && more) {
        if (l->msg != NULL) {
            more = split_one(l, pkts, &got);
        } else if (msgs >= l->burst && (got > 0 || msgs >= LINK_BURST_MAX)) {
            l->burst = mn_min_u32(2 * l->burst, LINK_BURST_MAX);
            break;
        } else {
            more = take_msg(l, pkts, &got);
            msgs++;
        }
    }
    if (!more) {
        l->burst = 1;
    }
    /* What is left of a message makes no descriptor readable; and 0 frames would say that no more
     * messages wait. */
    nic->wake_ns = l->msg != NULL || (got == 0 && more) ? 1 : 0;
    return got;
}

/* The frame with its length in front, in as few pieces as possible: how many; `len` is room for the
 * length where the packet has none. */
static uint32_t frame_pieces(struct mn_pkt *pkt, uint32_t frame_len, uint8_t *len,
                             struct iovec *iov)
{
    bool has_room = pkt->data - LINK_LEN_BYTES >= mn_pktpool_buf(pkt);
    uint32_t n = 0;

    len = has_room ? pkt->data - LINK_LEN_BYTES : len;
    len[0] = (uint8_t)frame_len;
    len[1] = (uint8_t)(frame_len >> 8);
    iov[n++] = (struct iovec){.iov_base = len, .iov_len = LINK_LEN_BYTES};
    if (has_room) {
        iov[0].iov_len += pkt->len;
        pkt = pkt->next;
    }
    for (; pkt != NULL; pkt = pkt->next) {
        iov[n++] = (struct iovec){.iov_base = pkt->data, .iov_len = pkt->len};
    }
    return n;
}

static uint32_t count_pieces(const struct mn_pkt *pkt)
{
    uint32_t n = 1;

    for (; pkt != NULL; pkt = pkt->next) {
        n++;
    }
    return n;
}

/* Sends as many of the frames as one message holds: how many that is, or a negative errno. */
static int send_msg(struct mn_linknic *l, struct mn_pkt **pkts, uint32_t n, uint32_t *bytes)
{
    uint8_t lens[LINK_MSG_FRAMES][LINK_LEN_BYTES];
    struct iovec iov[LINK_PIECES_MAX];
    struct msghdr msg = {.msg_iov = iov};
    uint32_t i, size = 0;
    ssize_t done;

    *bytes = 0;
    for (i = 0; i < n && i < LINK_MSG_FRAMES; i++) {
        uint32_t len = mn_pkt_frame_len(pkts[i]);

        MN_ASSERT(len <= l->mtu_frame && pkts[i]->csum != MN_CSUM_PARTIAL &&
                  pkts[i]->gso_size == 0);
        if (size + LINK_LEN_BYTES + len > LINK_MSG_MAX ||
            msg.msg_iovlen + count_pieces(pkts[i]) > LINK_PIECES_MAX) {
            break;
        }
        size += LINK_LEN_BYTES + len;
        *bytes += len;
        msg.msg_iovlen += frame_pieces(pkts[i], len, lens[i], iov + msg.msg_iovlen);
    }
    MN_ASSERT(i > 0);
    do {
        done = sendmsg(l->sock.conn_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (MN_UNLIKELY(done < 0 && errno == EINTR));
    return done < 0 ? -errno : (int)i;
}

/* The other end's queue is full. Waiting is right while it is only slow: true once it is not. */
static bool stalled(struct mn_linknic *l)
{
    uint64_t now = now_ns();

    l->stats.tx_full++;
    if (l->stalled_ns == 0) {
        l->stalled_ns = now;
    }
    return now - l->stalled_ns > LINK_STALL_NS;
}

/* What to do with n frames that could not be sent: true when they are lost. */
static bool give_up(struct mn_linknic *l, int rc, uint32_t n)
{
    if (rc == -EAGAIN) {
        if (!stalled(l)) {
            return false;
        }
        l->stats.tx_stalled += n;
    } else if (rc == -EPIPE || rc == -ECONNRESET) {
        l->stats.tx_no_peer += n;
        lost(l);
    } else {
        l->stats.last_errno = -rc;
        l->stats.tx_errors += n;
    }
    return true;
}

static uint32_t link_tx_burst(struct mn_nic *nic, uint32_t queue, struct mn_pkt **pkts, uint32_t n)
{
    struct mn_linknic *l = (struct mn_linknic *)nic;
    uint32_t sent = 0, gone;

    (void)queue;
    if (MN_UNLIKELY(nic->link_up == 0) && !find_peer(l)) {
        l->stats.tx_no_peer += n;
        sent = n;
    }
    while (sent < n) {
        uint32_t bytes;
        int rc = send_msg(l, pkts + sent, n - sent, &bytes);

        if (MN_UNLIKELY(rc < 0)) {
            n = give_up(l, rc, n - sent) ? n : sent;
            break;
        }
        l->stalled_ns = 0;
        l->stats.tx_frames += (uint32_t)rc;
        l->stats.tx_bytes += bytes;
        l->stats.tx_msgs++;
        sent += (uint32_t)rc;
    }
    for (gone = 0; gone < n; gone++) {
        mn_pktpool_put_frame(&l->pool, pkts[gone]);
    }
    return n;
}

static struct mn_pkt *link_pkt_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size)
{
    struct mn_linknic *l = (struct mn_linknic *)nic;

    (void)queue;
    return MN_UNLIKELY(size > l->pool.room) ? NULL : mn_pktpool_get(&l->pool);
}

static void link_pkt_free(struct mn_nic *nic, uint32_t queue, struct mn_pkt *pkt)
{
    struct mn_linknic *l = (struct mn_linknic *)nic;

    (void)queue;
    mn_pktpool_put_frame(&l->pool, pkt);
}

static const struct mn_nic_ops link_ops = {
    .rx_burst = link_rx_burst,
    .tx_burst = link_tx_burst,
    .pkt_alloc = link_pkt_alloc,
    .pkt_free = link_pkt_free,
};

/* Writes the message and returns the code. */
__attribute__((format(printf, 4, 5))) static int fail(char *err, size_t errlen, int rc,
                                                      const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    if (err != NULL && errlen > 0) {
        (void)vsnprintf(err, errlen, fmt, args);
    }
    va_end(args);
    return rc;
}

static int explain(int rc, const char *path, char *err, size_t errlen)
{
    switch (rc) {
    case -ENAMETOOLONG:
        return fail(err, errlen, rc, "link: a socket's path has 1 to %u bytes",
                    MN_LINKNIC_PATH_MAX);
    case -EEXIST:
        return fail(err, errlen, rc, "link:%s: there is a file of that name, and it is no socket",
                    path);
    case -EPROTOTYPE:
        return fail(err, errlen, rc, "link:%s: the socket of another program", path);
    case -EACCES:
        return fail(err, errlen, rc, "link:%s: permission denied; the link is its first user's",
                    path);
    case -ENOENT:
        return fail(err, errlen, rc, "link:%s: there is no such directory", path);
    default:
        return fail(err, errlen, rc, "link:%s: %s", path, strerror(-rc));
    }
}

static int choose_mac(const struct mn_linknic_config *cfg, uint8_t mac[6])
{
    static const uint8_t zero[6];

    if (memcmp(cfg->mac, zero, sizeof(zero)) != 0) {
        memcpy(mac, cfg->mac, sizeof(zero));
        return (mac[0] & 1) != 0 ? -EINVAL : 0;
    }
    if (getrandom(mac, sizeof(zero), 0) != (ssize_t)sizeof(zero)) {
        return -EIO;
    }
    mac[0] = (uint8_t)((mac[0] & 0xfe) | 0x02); /* not a group, locally administered */
    return 0;
}

static int link_init(struct mn_linknic *l, const struct mn_linknic_config *cfg, char *err,
                     size_t errlen)
{
    uint32_t pkts = cfg->pool_pkts != 0 ? cfg->pool_pkts : LINK_POOL_PKTS_DEFAULT;
    uint32_t mtu = cfg->mtu != 0 ? cfg->mtu : LINK_MTU_DEFAULT;
    int rc = mn_linknic_sock_open(&l->sock, cfg->path);

    if (rc != 0) {
        return explain(rc, cfg->path, err, errlen);
    }
    if (mtu < MN_LINKNIC_MTU_MIN || mtu > MN_LINKNIC_MTU_MAX) {
        return fail(err, errlen, -EINVAL, "link:%s: an MTU has %u to %u bytes, not %u", cfg->path,
                    MN_LINKNIC_MTU_MIN, MN_LINKNIC_MTU_MAX, mtu);
    }
    if (choose_mac(cfg, l->nic.mac) != 0) {
        return fail(err, errlen, -EINVAL, "link:%s: the MAC must be a unicast one", cfg->path);
    }
    rc = mn_pktpool_init(&l->pool, pkts, LINK_ROOM);
    if (rc != 0) {
        return fail(err, errlen, rc, "link: no memory for %u packets (at most %u)", pkts,
                    MN_PKTPOOL_PKTS_MAX);
    }
    l->burst = 1;
    l->mtu_frame = mtu + MN_ETH_HLEN;
    l->nic.ops = &link_ops;
    l->nic.caps = (struct mn_nic_caps){
        .mtu = mtu, .rx_max_frame = LINK_FRAME_MAX, .tx_max_frame = l->mtu_frame, .queues = 1};
    l->nic.rx_fd = l->sock.epoll_fd;
    if (l->sock.conn_fd >= 0) {
        say_hello(l);
    }
    return 0;
}

int mn_linknic_open(const struct mn_linknic_config *cfg, struct mn_nic **out, char *err,
                    size_t errlen)
{
    struct mn_linknic *l = calloc(1, sizeof(*l));
    int rc;

    if (err != NULL && errlen > 0) {
        err[0] = '\0';
    }
    if (l == NULL) {
        return -ENOMEM;
    }
    rc = link_init(l, cfg, err, errlen);
    if (rc != 0) {
        l->nic.ops = &link_ops;
        mn_linknic_close(&l->nic);
        return rc;
    }
    *out = &l->nic;
    return 0;
}

void mn_linknic_close(struct mn_nic *nic)
{
    struct mn_linknic *l = (struct mn_linknic *)nic;

    if (nic != NULL) {
        MN_ASSERT(nic->ops == &link_ops);
        mn_linknic_sock_close(&l->sock);
        mn_pktpool_fini(&l->pool);
        free(l);
    }
}

void mn_linknic_get_stats(const struct mn_nic *nic, struct mn_linknic_stats *out)
{
    const struct mn_linknic *l = (const struct mn_linknic *)nic;

    MN_ASSERT(nic->ops == &link_ops);
    *out = l->stats;
    if (l->sock.last_errno != 0) {
        out->last_errno = l->sock.last_errno;
    }
}
