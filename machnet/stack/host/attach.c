/* SPDX-License-Identifier: MIT */
/* The application's end of a channel whose engines are in another process. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "chan_int.h"

static void remote_kick(void *ctx)
{
    mn_os_event_raise(*(const int *)ctx);
}

/* Maps what was handed over. Sealed, or the process on the other side could make every access to it
 * a fault. */
static int remote_map(struct mn_chan *c, int memfd, uint32_t n_lanes)
{
    struct mn_remote *r = c->remote;
    struct mn_chan_geometry *geo = &c->geo;
    int seals = fcntl(memfd, F_GET_SEALS);
    struct stat st;
    void *mem;
    int rc;

    if (seals < 0 || fstat(memfd, &st) < 0) {
        return -errno;
    }
    if ((seals & F_SEAL_SHRINK) == 0 || st.st_size <= 0) {
        return -EPROTO;
    }
    mem = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (mem == MAP_FAILED) {
        return -errno;
    }
    r->region = mem;
    r->region_bytes = (uint64_t)st.st_size;
    rc = mn_chan_check(mem, r->region_bytes, geo);
    if (rc == 0 && (geo->n_lanes != n_lanes || geo->flows_max > 65535u >> mn_lane_bits(n_lanes))) {
        rc = -EINVAL;
    }
    return rc;
}

/* Whether a descriptor may be used without looking, for what comes from the other side: a kick is a
 * write that neither waits nor raises a signal, a wake-up is read from a socket. An eventfd is of
 * no type of file. */
static bool remote_fds_ok(const struct mn_chan_fds *fds)
{
    struct stat st;

    if (fstat(fds->wake, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    for (uint32_t i = 0; i < fds->n_lanes; i++) {
        int flags = fcntl(fds->kick[i], F_GETFL);

        if (flags < 0 || (flags & O_NONBLOCK) == 0 || fstat(fds->kick[i], &st) < 0 ||
            (st.st_mode & S_IFMT) != 0) {
            return false;
        }
    }
    return true;
}

static int remote_apps(struct mn_chan *c, const struct mn_chan_fds *fds)
{
    struct mn_remote *r = c->remote;
    uint64_t each = (mn_app_bytes(&c->geo) + 63) & ~UINT64_C(63);

    c->n_lanes = c->geo.n_lanes;
    c->lane_shift = 16 - mn_lane_bits(c->n_lanes);
    c->app_bytes = c->n_lanes * each;
    c->app_mem = mn_os_map(c->app_bytes);
    if (c->app_mem == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        int rc;

        r->kicks[i] = fds->kick[i];
        rc = mn_app_open_lane(&r->apps[i], (uint8_t *)c->app_mem + i * each, each, r->region,
                              r->region_bytes, i, remote_kick, &r->kicks[i]);
        if (rc < 0) {
            return rc;
        }
        mn_app_set_far(r->apps[i]);
    }
    c->app = r->apps[0];
    return 0;
}

static int remote_open(struct mn_chan *c, const struct mn_chan_fds *fds)
{
    int rc = remote_map(c, fds->memfd, fds->n_lanes);

    if (rc == 0 && !remote_fds_ok(fds)) {
        rc = -EPROTO;
    }
    if (rc == 0) {
        rc = remote_apps(c, fds);
    }
    if (rc == 0) {
        c->wake_fd = mn_os_event();
        rc = c->wake_fd < 0 ? c->wake_fd : 0;
    }
    return rc;
}

int mn_chan_attach(struct mn_chan **out, const struct mn_chan_fds *fds, uint64_t spin_ns)
{
    struct mn_chan *c = calloc(1, sizeof(*c));
    struct mn_remote *r = calloc(1, sizeof(*r));
    int rc = -EINVAL;

    if (c == NULL || r == NULL) {
        free(c);
        free(r);
        return -ENOMEM;
    }
    c->remote = r;
    c->wake_fd = -1;
    c->spin_ns = spin_ns;
    r->poll_fd = -1;
    r->wake_sock = -1;
    r->pid = getpid();
    if (fds->n_lanes >= 1 && fds->n_lanes <= MN_LANES_MAX) {
        rc = remote_open(c, fds);
    }
    if (rc < 0) {
        c->n_lanes = 0; /* the descriptors stay the caller's */
        mn_host_chan_release(c);
        free(c);
        return rc;
    }
    r->wake_sock = fds->wake;
    close(fds->memfd);
    *out = c;
    return 0;
}

void mn_remote_release(struct mn_chan *c)
{
    struct mn_remote *r = c->remote;

    /* In a child of the process that attached the rings are somebody else's. */
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        if (r->pid == getpid()) {
            mn_app_flush(r->apps[i]);
        }
        close(r->kicks[i]);
    }
    if (r->wake_sock >= 0) {
        close(r->wake_sock);
    }
    if (r->poll_fd >= 0) {
        close(r->poll_fd);
    }
    if (r->region != NULL) {
        munmap(r->region, r->region_bytes);
    }
    mn_multi_free_all(c);
    free(r);
    c->remote = NULL;
}

static void remote_gone(struct mn_chan *c)
{
    c->remote->gone = true;
    for (uint32_t i = 0; i < c->n_lanes; i++) {
        mn_app_hangup(c->remote->apps[i]);
    }
}

/* Takes wake-ups out; true when there will be no more of them, as was found just now. */
static bool remote_drain(struct mn_chan *c)
{
    if (c->remote->gone || mn_os_wake_drain(c->remote->wake_sock)) {
        return false;
    }
    remote_gone(c);
    return true;
}

bool mn_remote_look(struct mn_chan *c)
{
    struct mn_remote *r = c->remote;
    struct pollfd fd = {.fd = r->wake_sock, .events = 0};
    struct timespec now;
    int64_t tick;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    tick = (int64_t)now.tv_sec * (int64_t)MN_NS_PER_S + now.tv_nsec;
    if (MN_LIKELY(tick == r->looked) || r->gone) {
        return false;
    }
    r->looked = tick;
    if (mn_os_poll(&fd, 1, 0) <= 0 || (fd.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0) {
        return false;
    }
    remote_gone(c);
    return true;
}

int mn_remote_poll(struct mn_chan *c, uint64_t timeout_ns)
{
    struct pollfd fds[2] = {{.fd = c->wake_fd, .events = POLLIN},
                            {.fd = c->remote->wake_sock, .events = POLLIN}};
    int rc = mn_os_poll(fds, 2, timeout_ns);

    if (rc > 0 && (fds[0].revents & POLLIN) != 0) {
        mn_os_event_clear(c->wake_fd);
    }
    if (rc > 0 && fds[1].revents != 0) {
        (void)remote_drain(c);
    }
    return rc;
}

void mn_remote_clear(struct mn_chan *c)
{
    (void)remote_drain(c);
}

/* Both the engines' wake-ups and the chan's own descriptor, which says "look" when there was no
 * wake-up. That one stays readable for users of edges, so that a wake-up that was taken out by one
 * of them is still an edge for the others. */
int mn_remote_fd(struct mn_chan *c)
{
    struct mn_remote *r = c->remote;
    struct epoll_event in = {.events = EPOLLIN};
    int fd;

    if (r->poll_fd >= 0) {
        return r->poll_fd;
    }
    fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, r->wake_sock, &in) < 0 ||
        epoll_ctl(fd, EPOLL_CTL_ADD, c->wake_fd, &in) < 0) {
        int err = errno;

        if (fd >= 0) {
            close(fd);
        }
        return -err;
    }
    r->poll_fd = fd;
    return fd;
}

void mn_chan_forsake(struct mn_chan *c)
{
    atomic_store(&c->closing, 1);
    atomic_store(&c->busy, 0);
}

int mn_chan_geometry(struct mn_chan *c, struct mn_chan_geometry *out)
{
    int rc = mn_chan_take(c);

    if (rc == 0) {
        *out = c->geo;
        mn_chan_leave(c);
    }
    return rc;
}

uint32_t mn_chan_ip(const struct mn_chan *c, uint32_t lane)
{
    return c->remote != NULL && lane < c->n_lanes ? mn_app_ip(c->remote->apps[lane]) : 0;
}
