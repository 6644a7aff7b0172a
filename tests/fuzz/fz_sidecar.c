/* SPDX-License-Identifier: MIT */
#include "fz_sidecar.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "machnet/stack/host/host.h"

#define FDS_MAX    40u
#define CALLS_MAX  400000u
#define START_NS   (1000 * MN_NS_PER_S)
#define QUICK      200u /* calls of the system after which time goes faster */
#define PACKET_MAX 300u

struct fz_sidecar fz_sidecar = {.conn = -1};

struct packet {
    struct mn_ctrl_rep rep;
    uint8_t beyond[PACKET_MAX - sizeof(struct mn_ctrl_rep)];
    uint32_t bytes;
    int fds[FDS_MAX];
    uint32_t n_fds;
};

/* ---- what the library calls instead of the system ---- */

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len);
ssize_t __wrap_send(int fd, const void *buf, size_t bytes, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *limit, const sigset_t *mask);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
ssize_t __real_send(int fd, const void *buf, size_t bytes, int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);

static void serve(struct fz_sidecar *s, const struct mn_ctrl_req *req);

/* A call that goes on and on is a hang, whether it looks at the time or not. */
static void count_call(struct fz_sidecar *s)
{
    s->now_ns += ++s->calls < QUICK ? MN_NS_PER_US : 2 * MN_NS_PER_MS;
    FZ_CHECK(s->calls < CALLS_MAX && s->now_ns < s->end_ns);
}

/* Whatever the path: nothing is left behind in the file system. */
int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    struct fz_sidecar *s = &fz_sidecar;
    int ends[2];

    FZ_CHECK(addr->sa_family == AF_UNIX && len == sizeof(struct sockaddr_un));
    FZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    FZ_CHECK(dup3(ends[1], fd, O_CLOEXEC) == fd);
    close(ends[1]);
    if (s->conn >= 0) {
        close(s->conn);
    }
    s->conn = ends[0];
    return 0;
}

ssize_t __wrap_send(int fd, const void *buf, size_t bytes, int flags)
{
    struct fz_sidecar *s = &fz_sidecar;
    ssize_t rc = __real_send(fd, buf, bytes, flags);
    int err = errno;
    struct mn_ctrl_req req;

    count_call(s);
    while (s->conn >= 0 && recv(s->conn, &req, sizeof(req), MSG_DONTWAIT) == (ssize_t)sizeof(req)) {
        serve(s, &req);
    }
    errno = err;
    return rc;
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags)
{
    struct fz_sidecar *s = &fz_sidecar;

    count_call(s);
    if (s->flood && s->conn >= 0) {
        const struct mn_ctrl_rep rep = {.magic = MN_CTRL_MAGIC, .id = UINT32_MAX};

        (void)__real_send(s->conn, &rep, sizeof(rep), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    return __real_recvmsg(fd, msg, flags);
}

/* Time passes while nobody does anything; an engine does something else as long as there is input.
 */
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *limit, const sigset_t *mask)
{
    struct fz_sidecar *s = &fz_sidecar;
    int rc;

    (void)mask;
    count_call(s);
    rc = poll(fds, n, 0);
    if (rc != 0 || (limit != NULL && limit->tv_sec == 0 && limit->tv_nsec == 0)) {
        return rc;
    }
    if (s->n_mems > 0 && fz_more(s->in)) {
        struct fz_mem *m = &s->mems[s->n_mems - 1];

        fz_engines_act(m, s->in);
        if (fz_more(s->in) && (fz_u8(s->in) & 1) != 0) {
            fz_engines_answer(m);
        }
        rc = poll(fds, n, 0);
    }
    if (rc == 0 && limit != NULL) {
        s->now_ns += (uint64_t)limit->tv_sec * MN_NS_PER_S + (uint64_t)limit->tv_nsec;
    }
    FZ_CHECK(rc != 0 || limit != NULL); /* else it would wait for ever */
    return rc;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    struct fz_sidecar *s = &fz_sidecar;

    (void)clock;
    count_call(s);
    now->tv_sec = (time_t)(s->now_ns / MN_NS_PER_S);
    now->tv_nsec = (long)(s->now_ns % MN_NS_PER_S);
    return 0;
}

/* ---- what the controller says ---- */

static void fd_put(struct packet *p, int fd)
{
    FZ_CHECK(fd >= 0 && p->n_fds < FDS_MAX);
    p->fds[p->n_fds++] = fd;
}

/* The memory of a channel. variant 0: as it should be. */
static int memory_make(struct fz_sidecar *s, struct fz_mem *m, uint8_t variant)
{
    static const int seals[] = {F_SEAL_SHRINK | F_SEAL_GROW, 0, F_SEAL_SHRINK | F_SEAL_WRITE,
                                F_SEAL_SHRINK};
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    off_t bytes = (off_t)m->bytes;

    FZ_CHECK(fd >= 0);
    FZ_CHECK(ftruncate(fd, bytes) == 0);
    m->region = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    FZ_CHECK(m->region != MAP_FAILED);
    FZ_CHECK(mn_chan_format(m->region, m->bytes, &m->geo) == 0);
    for (uint32_t i = 0; i < m->geo.n_lanes; i++) {
        mn_chan_set_ip(m->region, i, 0x0a000001u + (i & 1));
    }
    if ((variant & 0x40) != 0) {
        uint32_t off = fz_u8(s->in) & 127, n = 1 + (fz_u8(s->in) & 7);

        fz_bytes(s->in, m->region + off, n);
    }
    switch (variant >> 2 & 3) {
    case 1:
        bytes = fz_u16(s->in);
        break;
    case 2:
        bytes += (int8_t)fz_u8(s->in);
        break;
    case 3:
        bytes = (off_t)1 << fz_u8(s->in) % 63;
        break;
    default:
        break;
    }
    if (bytes != (off_t)m->bytes) {
        munmap(m->region, m->bytes); /* no engine writes there */
        m->region = NULL;
        (void)ftruncate(fd, bytes);
    }
    if ((variant & 3) == 2 && m->region != NULL) {
        munmap(m->region, m->bytes); /* a mapping that may be written would be against the seal */
        m->region = NULL;
    }
    (void)fcntl(fd, F_ADD_SEALS, seals[variant & 3]);
    return fd;
}

/* A descriptor that is none of those that a channel has. */
static int odd_fd(struct fz_sidecar *s, struct packet *p)
{
    int pair[2];

    switch (fz_u8(s->in) & 7) {
    case 0:
        return memfd_create("odd", MFD_CLOEXEC);
    case 1:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    case 2:
        FZ_CHECK(pipe2(pair, O_CLOEXEC) == 0);
        fd_put(p, pair[0]);
        return pair[1];
    case 3:
        FZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        close(pair[0]); /* whoever writes there is sent a signal */
        return pair[1];
    case 4:
        return open("/", O_RDONLY | O_CLOEXEC);
    case 5:
        return eventfd(0, EFD_CLOEXEC); /* one that may wait */
    default:
        return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    }
}

/* Geometry, memory and descriptors of a new channel. */
static void attach_make(struct fz_sidecar *s, struct packet *p, uint8_t variant)
{
    struct fz_mem *m;
    uint8_t a = fz_u8(s->in);
    int ends[2];

    if (s->n_mems == FZ_MEMS) {
        p->rep.status = -EDQUOT;
        return;
    }
    m = &s->mems[s->n_mems];
    *m = (struct fz_mem){.wake = -1};
    m->geo = (struct mn_chan_geometry){
        .n_lanes = 1 + (a & (FZ_LANES_APP - 1)),
        .buf_bytes = 512,
        .tx_bufs = (a & 8) != 0 ? 40 : 16,
        .rx_bufs = (a & 16) != 0 ? 40 : 16,
        .flows_max = (a & 32) != 0 ? 20 : 4,
        .ctl_slots = 16,
    };
    m->bytes = mn_chan_bytes(&m->geo);
    FZ_CHECK(mn_chan_layout(&m->geo, &m->layout) == 0);
    fd_put(p, memory_make(s, m, variant));
    FZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    fd_put(p, ends[1]);
    m->wake = ends[0];
    for (uint32_t i = 0; i < m->geo.n_lanes; i++) {
        fd_put(p, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    }
    p->rep.channel = 1 + s->n_mems++;
    p->rep.n_lanes = m->geo.n_lanes;
    p->rep.geo = m->geo;
}

static void packet_send(struct fz_sidecar *s, const struct packet *p)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)&p->rep, .iov_len = p->bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (p->n_fds > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(p->n_fds * sizeof(int));
        control.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(p->n_fds * sizeof(int)),
                                         .cmsg_level = SOL_SOCKET,
                                         .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.align), p->fds, p->n_fds * sizeof(int));
    }
    (void)sendmsg(s->conn, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (uint32_t i = 0; i < p->n_fds; i++) {
        close(p->fds[i]);
    }
}

/* What may be wrong with a reply, one at a time. */
static void packet_spoil(struct fz_sidecar *s, struct packet *p, uint8_t kind)
{
    uint8_t a = fz_u8(s->in);
    uint32_t i;

    switch (kind & 15) {
    case 1:
        fz_bytes(s->in, (uint8_t *)&p->rep + a % (sizeof(p->rep) - 4), 4);
        break;
    case 2:
        p->bytes = (uint32_t)mn_min_u64(fz_u16(s->in), PACKET_MAX);
        break;
    case 3:
        p->rep.n_fds += 1 + (a & 3);
        break;
    case 4:
        p->rep.id += (uint32_t)(int8_t)a;
        break;
    case 5:
        p->rep.op = a;
        break;
    case 6:
        for (i = 0; i < (a & 31) && p->n_fds + 2 < FDS_MAX; i++) {
            fd_put(p, odd_fd(s, p));
        }
        p->rep.n_fds = (a & 32) != 0 ? p->n_fds : p->rep.n_fds;
        break;
    case 7:
        if (p->n_fds > 0 && p->n_fds + 1 < FDS_MAX) {
            i = a % p->n_fds;
            close(p->fds[i]);
            p->fds[i] = odd_fd(s, p);
            p->rep.n_fds = p->n_fds;
        }
        break;
    case 8:
        while (p->n_fds > (a & 7)) {
            close(p->fds[--p->n_fds]);
        }
        p->rep.n_fds = (a & 8) != 0 ? p->n_fds : p->rep.n_fds;
        break;
    case 9:
        p->rep.status = a < 128 ? -(int32_t)a : (int32_t)fz_u32(s->in);
        memset(p->rep.why, 'x', sizeof(p->rep.why));
        break;
    case 10:
        p->rep.n_lanes = p->rep.geo.n_lanes = a;
        break;
    case 11:
        p->rep.channel = a;
        break;
    case 12:
        fz_bytes(s->in, (uint8_t *)&p->rep, sizeof(p->rep));
        break;
    default:
        break;
    }
}

static void reply(struct fz_sidecar *s, const struct mn_ctrl_req *req)
{
    uint8_t kind = s->honest ? 0 : fz_u8(s->in);
    struct packet p = {
        .rep = {.magic = MN_CTRL_MAGIC,
                .version = MN_CTRL_VERSION,
                .op = req->op,
                .id = req->id,
                .chan_version = MN_CHAN_VERSION,
                .pid = 1},
        .bytes = sizeof(p.rep),
    };

    if (req->op == MN_CTRL_ATTACH) {
        attach_make(s, &p, (kind & 15) == 13 ? fz_u8(s->in) : 0);
    }
    p.rep.n_fds = p.n_fds;
    if (kind != 0) {
        packet_spoil(s, &p, kind);
    }
    packet_send(s, &p);
}

static void serve(struct fz_sidecar *s, const struct mn_ctrl_req *req)
{
    uint8_t plan = s->honest ? 1 : fz_u8(s->in);

    FZ_CHECK(req->magic == MN_CTRL_MAGIC && memchr(req->name, 0, sizeof(req->name)) != NULL);
    for (uint32_t i = 0; i < (plan & 3u); i++) {
        reply(s, req);
    }
    s->flood = (plan & 0xf0) == 0x30;
    if ((plan & 0xf0) == 0x10) {
        close(s->conn);
        s->conn = -1;
    } else if ((plan & 0xf0) == 0x20) {
        shutdown(s->conn, SHUT_RDWR);
    }
}

/* ---- its life ---- */

void fz_sidecar_begin(struct fz_in *in, bool honest)
{
    struct fz_sidecar *s = &fz_sidecar;

    s->in = in;
    s->honest = honest;
    s->flood = false;
    s->n_mems = 0;
    s->now_ns = START_NS;
    fz_sidecar_call(1);
}

void fz_sidecar_call(uint32_t seconds)
{
    fz_sidecar.calls = 0;
    fz_sidecar.end_ns = fz_sidecar.now_ns + seconds * MN_NS_PER_S;
}

void fz_sidecar_end(void)
{
    struct fz_sidecar *s = &fz_sidecar;

    for (uint32_t i = 0; i < s->n_mems; i++) {
        if (s->mems[i].region != NULL) {
            munmap(s->mems[i].region, s->mems[i].bytes);
        }
        if (s->mems[i].wake >= 0) {
            close(s->mems[i].wake);
        }
    }
    s->n_mems = 0;
    if (s->conn >= 0) {
        close(s->conn);
        s->conn = -1;
    }
}
