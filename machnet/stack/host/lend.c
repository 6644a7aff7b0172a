/* SPDX-License-Identifier: MIT */
/*
 * Channels that are lent to other processes. Nothing that the application does with its
 * descriptors reaches the engine: the memory can't shrink (F_SEAL_SHRINK), a wake-up is a send that
 * neither waits nor raises a signal, and a kick is an edge on a descriptor that is never read.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stack_int.h"

struct lent_lane {
    struct mn_stack *stack;
    uint32_t lane;
    int kick_fd; /* ours, beside the application's; only watched */
    bool attached;
};

struct mn_lent {
    struct mn_host_shared *shared;
    struct mn_chan_geometry geo;
    struct mn_lane_layout layout;
    struct lent_lane lanes[MN_LANES_MAX];
};

void mn_host_shared_put(struct mn_host_shared *sh)
{
    if (atomic_fetch_sub(&sh->refs, 1) == 1) {
        munmap(sh->region, sh->bytes);
        close(sh->wake_fd);
        free(sh);
    }
}

static void fd_close(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

void mn_chan_fds_close(struct mn_chan_fds *fds)
{
    fd_close(&fds->memfd);
    fd_close(&fds->wake);
    for (uint32_t i = 0; i < MN_LANES_MAX; i++) {
        fd_close(&fds->kick[i]);
    }
    fds->n_lanes = 0;
}

static void fds_none(struct mn_chan_fds *fds)
{
    *fds = (struct mn_chan_fds){.memfd = -1, .wake = -1};
    for (uint32_t i = 0; i < MN_LANES_MAX; i++) {
        fds->kick[i] = -1;
    }
}

static struct mn_lane_shared *lane_flags(const struct mn_lent *l, uint32_t i)
{
    return (struct mn_lane_shared *)(void *)mn_chan_lane(l->shared->region, &l->layout, i);
}

static void lane_closed(struct mn_lane_shared *flags)
{
    uint32_t alive = 0;

    /* What the engine itself has said of it stays. */
    atomic_compare_exchange_strong(&flags->closed, &alive, EPIPE);
}

/* Memory that neither side can take away from under the other, mapped here. */
static int memory_make(struct mn_host_shared *sh)
{
    int fd = memfd_create("machnet-channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *mem = MAP_FAILED;

    if (fd < 0) {
        return -errno;
    }
    if (ftruncate(fd, (off_t)sh->bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
        mem = mmap(NULL, sh->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    }
    if (mem == MAP_FAILED) {
        int err = errno;

        close(fd);
        return -err;
    }
    sh->region = mem;
    return fd;
}

static int shared_make(struct mn_lent *l, struct mn_chan_fds *fds)
{
    struct mn_host_shared *sh = calloc(1, sizeof(*sh));
    int ends[2];
    int rc;

    if (sh == NULL) {
        return -ENOMEM;
    }
    sh->bytes = mn_chan_bytes(&l->geo);
    fds->memfd = rc = memory_make(sh);
    if (rc < 0) {
        free(sh);
        return rc;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        rc = -errno;
        munmap(sh->region, sh->bytes);
        free(sh);
        return rc;
    }
    /* The application has nothing to say here. */
    shutdown(ends[0], SHUT_RD);
    sh->wake_fd = ends[0];
    fds->wake = ends[1];
    atomic_store(&sh->refs, 1);
    l->shared = sh;
    return mn_chan_format(sh->region, sh->bytes, &l->geo);
}

struct lend_args {
    struct mn_lent *lent;
    struct lent_lane *at;
    uint32_t index;
    struct mn_host_lane mem;
};

/* A stepped stack in virtual time has no thread that sleeps, and so nobody to be woken. */
static int kick_watch(struct mn_stack *s, int kick_fd)
{
    struct epoll_event edge = {.events = EPOLLIN | EPOLLET};

    if (s->kick_fd < 0) {
        return 0;
    }
    if (s->lent_fd < 0) {
        s->lent_fd = epoll_create1(EPOLL_CLOEXEC);
    }
    if (s->lent_fd < 0 || epoll_ctl(s->lent_fd, EPOLL_CTL_ADD, kick_fd, &edge) < 0) {
        return -errno;
    }
    return 0;
}

static void kick_unwatch(struct mn_stack *s, int kick_fd)
{
    /* Closing would not do: the application has the same eventfd open. */
    if (s->lent_fd >= 0) {
        (void)epoll_ctl(s->lent_fd, EPOLL_CTL_DEL, kick_fd, NULL);
    }
}

void mn_host_lents_heard(struct mn_stack *s)
{
    struct epoll_event events[32];

    /* More than these: the descriptor stays readable. */
    (void)epoll_wait(s->lent_fd, events, MN_ARRAY_LEN(events), 0);
}

static int64_t call_lend(struct mn_stack *s, void *arg)
{
    struct lend_args *a = arg;
    int rc = kick_watch(s, a->at->kick_fd);
    int lane;

    if (rc < 0) {
        return rc;
    }
    if (s->zombies > 0) {
        mn_host_lanes_reap(s);
    }
    lane = mn_engine_attach_lane(s->engine, a->mem.region, a->mem.region_bytes, a->index,
                                 a->mem.priv, a->mem.priv_bytes);
    if (lane < 0) {
        kick_unwatch(s, a->at->kick_fd);
        return lane == -EMFILE ? -ENOSPC : lane;
    }
    MN_ASSERT((uint32_t)lane < s->lanes_max && !s->lanes[lane].used);
    mn_engine_lane_set_far(s->engine, (uint32_t)lane);
    mn_chan_set_ip(a->mem.region, a->index, s->ip);
    atomic_fetch_add(&a->mem.shared->refs, 1);
    s->lanes[lane] = a->mem;
    s->lanes[lane].lent = true;
    s->lanes[lane].used = true;
    a->at->lane = (uint32_t)lane;
    a->at->attached = true;
    return 0;
}

static int lane_lend(struct mn_lent *l, uint32_t i, struct mn_stack *s, struct mn_chan_fds *fds)
{
    struct lent_lane *at = &l->lanes[i];
    struct lend_args a = {.lent = l, .at = at, .index = i};
    int64_t rc;

    at->stack = s;
    at->kick_fd = mn_os_event();
    if (at->kick_fd < 0) {
        return at->kick_fd;
    }
    fds->kick[i] = fcntl(at->kick_fd, F_DUPFD_CLOEXEC, 0);
    if (fds->kick[i] < 0) {
        return -errno;
    }
    a.mem.shared = l->shared;
    a.mem.flags = lane_flags(l, i);
    a.mem.region = l->shared->region;
    a.mem.region_bytes = l->shared->bytes;
    a.mem.priv_bytes = mn_lane_priv_bytes(&l->geo);
    a.mem.priv = mn_os_map(a.mem.priv_bytes);
    if (a.mem.priv == NULL) {
        return -ENOMEM;
    }
    rc = mn_stack_call(s, call_lend, &a);
    if (rc < 0) {
        mn_os_unmap(a.mem.priv, a.mem.priv_bytes);
    }
    return (int)rc;
}

struct unlend_args {
    struct lent_lane *at;
    uint32_t linger_ms;
};

static int64_t call_unlend(struct mn_stack *s, void *arg)
{
    const struct unlend_args *a = arg;

    kick_unwatch(s, a->at->kick_fd);
    s->lanes[a->at->lane].lent = false;
    s->zombies++;
    return mn_engine_detach(s->engine, a->at->lane,
                            a->linger_ms == MN_LINGER_DEFAULT ? s->linger_ms : a->linger_ms);
}

/* Whether a lane is the engine's no more: 0, or -EBUSY and the like. */
static int lane_unlend(struct lent_lane *at, uint32_t linger_ms)
{
    struct unlend_args a = {.at = at, .linger_ms = linger_ms};
    int rc = 0;

    if (at->attached) {
        rc = (int)mn_stack_call(at->stack, call_unlend, &a);
    }
    if (rc == -EBUSY || rc == -ECHILD) {
        return rc;
    }
    at->attached = false; /* -EPIPE: the stack has ended, and its lanes with it */
    fd_close(&at->kick_fd);
    return 0;
}

int mn_lent_close(struct mn_lent *l, uint32_t linger_ms)
{
    for (uint32_t i = 0; i < l->geo.n_lanes; i++) {
        int rc = lane_unlend(&l->lanes[i], linger_ms);

        if (rc < 0) {
            return rc;
        }
    }
    if (l->shared != NULL) {
        for (uint32_t i = 0; i < l->geo.n_lanes; i++) {
            lane_closed(lane_flags(l, i));
        }
        shutdown(l->shared->wake_fd, SHUT_RDWR);
        mn_host_shared_put(l->shared);
    }
    free(l);
    return 0;
}

int mn_lent_lane(const struct mn_lent *l, uint32_t i)
{
    return i < l->geo.n_lanes ? (int)l->lanes[i].lane : -EINVAL;
}

static int64_t call_dead(struct mn_stack *s, void *arg)
{
    return mn_engine_lane_dead(s->engine, *(const uint32_t *)arg);
}

int mn_lent_dead(const struct mn_lent *l)
{
    for (uint32_t i = 0; i < l->geo.n_lanes; i++) {
        uint32_t lane = l->lanes[i].lane;
        int64_t err = mn_stack_call(l->lanes[i].stack, call_dead, &lane);

        if (err != 0) {
            return (int)err;
        }
    }
    return 0;
}

void mn_host_lents_shut(struct mn_stack *s)
{
    for (uint32_t i = 0; s->lanes != NULL && i < s->lanes_max; i++) {
        struct mn_host_lane *m = &s->lanes[i];

        if (m->lent) {
            m->lent = false;
            lane_closed(m->flags);
            mn_os_wake_send(m->shared->wake_fd);
        }
    }
}

int mn_lend(struct mn_lent **out, struct mn_stack *const *stacks, uint32_t n,
            const struct mn_chan_geometry *geo, struct mn_chan_fds *fds)
{
    struct mn_lent *l;
    int rc;

    fds_none(fds);
    if (n < 1 || n > MN_LANES_MAX || geo->flows_max > 65535u >> mn_lane_bits(n)) {
        return -EINVAL;
    }
    l = calloc(1, sizeof(*l));
    if (l == NULL) {
        return -ENOMEM;
    }
    l->geo = *geo;
    l->geo.n_lanes = n;
    for (uint32_t i = 0; i < n; i++) {
        l->lanes[i].kick_fd = -1;
    }
    rc = mn_chan_layout(&l->geo, &l->layout);
    if (rc == 0) {
        rc = shared_make(l, fds);
    }
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = lane_lend(l, i, stacks[i], fds);
    }
    if (rc < 0) {
        while (mn_lent_close(l, 0) == -EBUSY) {
            sched_yield();
        }
        mn_chan_fds_close(fds);
        return rc;
    }
    fds->n_lanes = n;
    *out = l;
    return 0;
}
