/* SPDX-License-Identifier: MIT */
#include "client.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "machnet/stack/host/os.h"

/* memfd, wake, and a kick per lane. */
#define FDS_MAX (2 + MN_LANES_MAX)

/* A channel that was attached and not detached, for the fork handler. */
struct attached {
    struct mn_chan *chan;
    uint32_t channel;
    struct attached *next;
};

struct mn_client {
    pthread_mutex_t lock;
    int fd;
    uint32_t forks;
    uint32_t next_id;
    char why[MN_CTRL_WHY_BYTES];
    struct attached *chans; /* under all_lock, as is the list of all */
    struct mn_client *next;
};

struct reply {
    struct mn_ctrl_rep rep;
    int fds[FDS_MAX];
    uint32_t n_fds;
};

/* All connections of the process, for the fork handler. */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mn_client *all;
static _Atomic uint32_t forks;

static void before_fork(void)
{
    pthread_mutex_lock(&all_lock);
}

static void after_fork_parent(void)
{
    pthread_mutex_unlock(&all_lock);
}

/* A socket that stays open in the child would hide the parent's death from the sidecar, and rings
 * have one producer: both are given up. */
static void after_fork_child(void)
{
    for (struct mn_client *c = all; c != NULL; c = c->next) {
        close(c->fd);
        c->fd = -1;
        for (const struct attached *a = c->chans; a != NULL; a = a->next) {
            mn_chan_forsake(a->chan);
        }
    }
    all = NULL;
    atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
    pthread_mutex_unlock(&all_lock);
}

/* Before shim.c's: what is registered later locks first, and its lock is the outer one. */
static __attribute__((constructor(200))) void watch_forks(void)
{
    (void)pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

uint32_t mn_client_forks(void)
{
    return atomic_load_explicit(&forks, memory_order_relaxed);
}

static void enlist(struct mn_client *c)
{
    pthread_mutex_lock(&all_lock);
    c->next = all;
    all = c;
    pthread_mutex_unlock(&all_lock);
}

static void delist(struct mn_client *c)
{
    pthread_mutex_lock(&all_lock);
    for (struct mn_client **p = &all; *p != NULL; p = &(*p)->next) {
        if (*p == c) {
            *p = c->next;
            break;
        }
    }
    pthread_mutex_unlock(&all_lock);
}

/* A number is forgotten with its channel: two channels of one number, and the record of one of them
 * would outlive it. */
static int remember(struct mn_client *c, struct mn_chan *chan, uint32_t channel)
{
    struct attached *a = malloc(sizeof(*a));
    int rc = 0;

    if (a == NULL) {
        return -ENOMEM;
    }
    *a = (struct attached){.chan = chan, .channel = channel};
    pthread_mutex_lock(&all_lock);
    for (const struct attached *other = c->chans; other != NULL; other = other->next) {
        rc = other->channel == channel ? -EPROTO : rc;
    }
    if (rc == 0) {
        a->next = c->chans;
        c->chans = a;
    }
    pthread_mutex_unlock(&all_lock);
    if (rc < 0) {
        free(a);
    }
    return rc;
}

static void forget(struct mn_client *c, uint32_t channel)
{
    struct attached *found = NULL;

    pthread_mutex_lock(&all_lock);
    for (struct attached **p = &c->chans; *p != NULL; p = &(*p)->next) {
        if ((*p)->channel == channel) {
            found = *p;
            *p = found->next;
            break;
        }
    }
    pthread_mutex_unlock(&all_lock);
    free(found);
}

const char *mn_client_path(const char *path)
{
    const char *set;

    if (path != NULL) {
        return path;
    }
    set = getenv("MACHNET_SOCKET");
    return set != NULL && set[0] != '\0' ? set : MN_CTRL_SOCKET;
}

static void close_fds(struct reply *r)
{
    for (uint32_t i = 0; i < r->n_fds; i++) {
        close(r->fds[i]);
    }
    r->n_fds = 0;
}

/* Waits until the socket takes or has a packet. */
static int wait_socket(int fd, short events, uint64_t end_ns)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        uint64_t now_ns = mn_host_now_ns();
        int rc = mn_os_poll(&p, 1, end_ns > now_ns ? end_ns - now_ns : 0);

        if (rc != -EINTR) {
            return rc < 0 ? rc : rc == 0 ? -ETIMEDOUT : 0;
        }
    }
}

static void take_fds(struct reply *r, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            uint32_t n = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

            for (uint32_t i = 0; i < n; i++) {
                int fd;

                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                if (r->n_fds < FDS_MAX) {
                    r->fds[r->n_fds++] = fd;
                } else {
                    close(fd);
                }
            }
        }
    }
}

/* One packet, checked: 0, -EAGAIN, or why the connection is of no more use. */
static int receive(int fd, struct reply *r)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = &r->rep, .iov_len = sizeof(r->rep)};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t got = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    r->n_fds = 0;
    if (got < 0) {
        return errno == EAGAIN || errno == EINTR ? -EAGAIN : -EPIPE;
    }
    take_fds(r, &msg);
    if (got == 0) {
        close_fds(r);
        return -EPIPE;
    }
    if (got != sizeof(r->rep) || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
        r->rep.magic != MN_CTRL_MAGIC || r->rep.n_fds != r->n_fds) {
        close_fds(r);
        return -EPROTO;
    }
    r->rep.why[sizeof(r->rep.why) - 1] = '\0';
    return 0;
}

/* The answer to request `id`; those to requests that were given up are passed over, which is no
 * reason to wait longer. */
static int await(int fd, const struct mn_ctrl_req *req, struct reply *r, uint64_t end_ns)
{
    for (;;) {
        int rc = receive(fd, r);

        if (rc == -EAGAIN) {
            rc = wait_socket(fd, POLLIN, end_ns);
            if (rc < 0) {
                return rc;
            }
        } else if (rc < 0) {
            return rc;
        } else if (r->rep.id == req->id && r->rep.op == req->op) {
            return 0;
        } else {
            close_fds(r);
            if (mn_host_now_ns() >= end_ns) {
                return -ETIMEDOUT;
            }
        }
    }
}

static int transmit(int fd, const struct mn_ctrl_req *req, uint64_t end_ns)
{
    for (;;) {
        ssize_t sent = send(fd, req, sizeof(*req), MSG_DONTWAIT | MSG_NOSIGNAL);
        int rc;

        if (sent == (ssize_t)sizeof(*req)) {
            return 0;
        }
        if (sent >= 0 || (errno != EAGAIN && errno != EINTR)) {
            return -EPIPE;
        }
        rc = wait_socket(fd, POLLOUT, end_ns);
        if (rc < 0) {
            return rc;
        }
    }
}

/* Nobody in a forked child may wait for the lock: whoever held it does not exist there. */
static int enter(struct mn_client *c)
{
    if (c->forks != mn_client_forks()) {
        return -ECHILD;
    }
    pthread_mutex_lock(&c->lock);
    return 0;
}

/* Sends a request and waits for its answer: the answer's status, or why there is none. */
static int ask(struct mn_client *c, struct mn_ctrl_req *req, struct reply *r)
{
    uint64_t end_ns = mn_host_now_ns() + MN_CLIENT_TIMEOUT_MS * MN_NS_PER_MS;
    int rc;

    r->n_fds = 0;
    req->magic = MN_CTRL_MAGIC;
    req->version = MN_CTRL_VERSION;
    req->id = c->next_id++;
    rc = transmit(c->fd, req, end_ns);
    if (rc == 0) {
        rc = await(c->fd, req, r, end_ns);
    }
    if (rc == -EPIPE) {
        (void)snprintf(c->why, sizeof(c->why), "the sidecar has closed the connection");
    } else if (rc == -EPROTO) {
        (void)snprintf(c->why, sizeof(c->why), "what answered is no machnet sidecar");
    } else if (rc == -ETIMEDOUT) {
        (void)snprintf(c->why, sizeof(c->why), "the sidecar did not answer within %u ms",
                       MN_CLIENT_TIMEOUT_MS);
    } else if (rc == 0 && r->rep.status != 0) {
        rc = r->rep.status < 0 && r->rep.status > -4096 ? r->rep.status : -EPROTO;
        memcpy(c->why, r->rep.why, sizeof(c->why));
        close_fds(r);
    }
    return rc;
}

static int dial(int *out, const char *path, char *why, uint32_t why_bytes)
{
    const struct timeval limit = {.tv_sec = MN_CLIENT_TIMEOUT_MS / 1000};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd, rc;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        (void)snprintf(why, why_bytes, "the path %s is longer than %zu bytes", path,
                       sizeof(addr.sun_path) - 1);
        return -ENAMETOOLONG;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        rc = -errno;
        (void)snprintf(why, why_bytes, "socket: %s", strerror(-rc));
        return rc;
    }
    /* A sidecar that does not take connections must not hold its applications for ever. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    do {
        rc = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? -errno : 0;
    } while (rc == -EINTR);
    if (rc == 0) {
        *out = fd;
        return 0;
    }
    close(fd);
    if (rc == -EAGAIN) {
        rc = -ETIMEDOUT;
    } else if (rc == -ENOENT || rc == -ENOTDIR || rc == -EPROTOTYPE) {
        (void)snprintf(why, why_bytes, "no sidecar at %s: %s", path, strerror(-rc));
        return -ECONNREFUSED;
    }
    (void)snprintf(why, why_bytes, "no sidecar at %s: %s", path, strerror(-rc));
    return rc;
}

/* Says who we are and checks that both speak the same. */
static int hello(struct mn_client *c, const char *app_name)
{
    struct mn_ctrl_req req = {.op = MN_CTRL_HELLO, .chan_version = MN_CHAN_VERSION};
    struct reply r;
    int rc;

    (void)snprintf(req.name, sizeof(req.name), "%s",
                   app_name != NULL ? app_name : program_invocation_short_name);
    rc = ask(c, &req, &r);
    if (rc == 0) {
        close_fds(&r);
        if (r.rep.version != MN_CTRL_VERSION || r.rep.chan_version != MN_CHAN_VERSION) {
            (void)snprintf(c->why, sizeof(c->why),
                           "the sidecar speaks version %u (channels %u), this library %u (%u)",
                           r.rep.version, r.rep.chan_version, MN_CTRL_VERSION, MN_CHAN_VERSION);
            rc = -EPROTO;
        }
    }
    return rc;
}

int mn_client_open(struct mn_client **out, const char *path, const char *app_name, char *why,
                   uint32_t why_bytes)
{
    struct mn_client *c = calloc(1, sizeof(*c));
    char unread[MN_CTRL_WHY_BYTES];
    int rc;

    if (why == NULL) {
        why = unread;
        why_bytes = sizeof(unread);
    }
    path = mn_client_path(path);
    if (c == NULL) {
        (void)snprintf(why, why_bytes, "%s", strerror(ENOMEM));
        return -ENOMEM;
    }
    rc = dial(&c->fd, path, why, why_bytes);
    if (rc < 0) {
        free(c);
        return rc;
    }
    c->forks = mn_client_forks();
    c->next_id = 1;
    (void)pthread_mutex_init(&c->lock, NULL);
    enlist(c);
    rc = hello(c, app_name);
    if (rc < 0) {
        (void)snprintf(why, why_bytes, "the sidecar at %s: %s", path, c->why);
        mn_client_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

/* What the answer says of the channel is what its memory says. */
static int check_geometry(struct mn_chan *chan, const struct mn_chan_geometry *said)
{
    struct mn_chan_geometry geo;
    int rc = mn_chan_geometry(chan, &geo);

    return rc == 0 && memcmp(&geo, said, sizeof(geo)) != 0 ? -EPROTO : rc;
}

/* Makes a channel of an answer's descriptors, which it takes over or closes. */
static int attach_reply(struct mn_client *c, struct reply *r, uint64_t spin_ns,
                        struct mn_chan **out)
{
    struct mn_chan_fds fds = {.n_lanes = r->rep.n_lanes};
    int rc;

    if (fds.n_lanes < 1 || fds.n_lanes > MN_LANES_MAX || r->n_fds != 2 + fds.n_lanes ||
        r->rep.geo.n_lanes != fds.n_lanes) {
        close_fds(r);
        rc = -EPROTO;
    } else {
        fds.memfd = r->fds[0];
        fds.wake = r->fds[1];
        memcpy(fds.kick, &r->fds[2], fds.n_lanes * sizeof(int));
        rc = mn_chan_attach(out, &fds, spin_ns);
        if (rc < 0) {
            close_fds(r);
        } else {
            rc = check_geometry(*out, &r->rep.geo);
            rc = rc < 0 ? rc : remember(c, *out, r->rep.channel);
            if (rc < 0) {
                (void)mn_chan_close(*out, 0);
                mn_chan_free(*out);
            }
        }
    }
    if (rc < 0) {
        (void)snprintf(c->why, sizeof(c->why), "the sidecar's channel can't be used: %s",
                       strerror(-rc));
    }
    return rc;
}

int mn_client_attach(struct mn_client *c, const struct mn_chan_geometry *geo, uint64_t spin_ns,
                     struct mn_chan **out, uint32_t *channel_id, struct mn_chan_geometry *geo_out)
{
    struct mn_ctrl_req req = {.op = MN_CTRL_ATTACH};
    struct reply r;
    int rc;

    if (geo != NULL) {
        req.geo = *geo;
    }
    rc = enter(c);
    if (rc < 0) {
        return rc;
    }
    rc = ask(c, &req, &r);
    if (rc == 0) {
        rc = attach_reply(c, &r, spin_ns, out);
        if (rc == 0) {
            *channel_id = r.rep.channel;
            if (geo_out != NULL) {
                *geo_out = r.rep.geo;
            }
        } else {
            struct mn_ctrl_req undo = {.op = MN_CTRL_DETACH, .channel = r.rep.channel};
            char why[sizeof(c->why)];

            memcpy(why, c->why, sizeof(why));
            if (ask(c, &undo, &r) == 0) {
                close_fds(&r);
            }
            memcpy(c->why, why, sizeof(why));
        }
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

int mn_client_detach(struct mn_client *c, uint32_t channel_id, uint32_t linger_ms)
{
    struct mn_ctrl_req req = {.op = MN_CTRL_DETACH, .channel = channel_id, .value = linger_ms};
    struct reply r;
    int rc;

    rc = enter(c);
    if (rc == 0) {
        forget(c, channel_id);
        rc = ask(c, &req, &r);
        close_fds(&r);
        pthread_mutex_unlock(&c->lock);
    }
    return rc;
}

void mn_client_close(struct mn_client *c)
{
    if (c == NULL) {
        return;
    }
    delist(c);
    while (c->chans != NULL) {
        struct attached *a = c->chans;

        c->chans = a->next;
        free(a);
    }
    if (c->fd >= 0) {
        close(c->fd);
    }
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
}

bool mn_client_alive(struct mn_client *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};

    if (c->forks != mn_client_forks()) {
        return false;
    }
    return poll(&p, 1, 0) <= 0 || (p.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0;
}

void mn_client_why(struct mn_client *c, char *why, uint32_t why_bytes)
{
    if (enter(c) == 0) {
        (void)snprintf(why, why_bytes, "%s", c->why);
        pthread_mutex_unlock(&c->lock);
    } else {
        (void)snprintf(why, why_bytes, "the connection belongs to the parent process");
    }
}

int mn_client_fd(const struct mn_client *c)
{
    return c->fd;
}
