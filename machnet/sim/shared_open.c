/* SPDX-License-Identifier: MIT */
/* Making and ending the views of a NIC. */
#include "shared_int.h"

#include "machnet/stack/host/host.h"
#include "machnet/stack/host/os.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define RING_BYTES_DEFAULT (1u << 20)
#define POOL_PKTS          256u

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};

    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/* One descriptor for the event and the queue; a NIC without one can't wake, and is looked at after
 * naps. */
static int open_fds(struct mn_view *v)
{
    struct mn_nic *inner = v->hub->inner;
    int fd = inner->ops->queue_fd != NULL ? inner->ops->queue_fd(inner, v->queue) : inner->rx_fd;
    int rc;

    v->event_fd = mn_os_event();
    if (v->event_fd < 0) {
        return v->event_fd;
    }
    if (v->pooled) {
        v->nic.rx_fd = v->event_fd;
        return 0;
    }
    if (fd < 0) {
        v->nic.rx_fd = -1;
        return 0;
    }
    v->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (v->epoll_fd < 0) {
        return -errno;
    }
    v->nic.rx_fd = v->epoll_fd;
    rc = watch(v->epoll_fd, v->event_fd);
    return rc == 0 ? watch(v->epoll_fd, fd) : rc;
}

static int view_init(struct shared_hub *h, uint32_t index)
{
    struct mn_view *v = &h->views[index];
    const struct mn_nic_caps *caps = &h->inner->caps;

    v->hub = h;
    v->index = index;
    v->queue = h->soft ? 0 : index;
    v->pooled = h->soft && index > 0;
    v->nic = *h->inner;
    v->nic.ops = &mn_shared_view_ops;
    v->nic.caps.queues = 1;
    v->nic.caps.rss = h->soft ? &h->rss : caps->rss;
    v->nic.wake_ns = v->pooled ? 0 : h->inner->wake_ns;
    v->nic.moved = 0;
    if (v->pooled) {
        int rc = mn_pktpool_init(&v->pool, POOL_PKTS,
                                 mn_max_u32(caps->rx_max_frame, caps->tx_max_frame));

        if (rc != 0) {
            return rc;
        }
    }
    return open_fds(v);
}

static void hub_free(struct shared_hub *h)
{
    for (uint32_t i = 0; h->views != NULL && i < h->n; i++) {
        struct mn_view *v = &h->views[i];

        if (v->event_fd >= 0) {
            (void)close(v->event_fd);
        }
        if (v->epoll_fd >= 0) {
            (void)close(v->epoll_fd);
        }
        if (v->pool.mem != NULL) {
            mn_pktpool_fini(&v->pool);
        }
    }
    free(h->views);
    free(h->rings);
    free((void *)h->owners);
    mn_os_unmap(h->ring_mem, h->ring_mem_bytes);
    free(h);
}

static int hub_init(struct shared_hub *h, uint32_t ring_bytes)
{
    size_t rings = (size_t)h->n * h->n;

    h->ring_mem_bytes = (uint64_t)rings * ring_bytes;
    h->ring_mem = mn_os_map(h->ring_mem_bytes);
    h->owners = calloc(MN_OWNERS, sizeof(*h->owners));
    h->rings = aligned_alloc(MN_CACHE_LINE, rings * sizeof(*h->rings));
    h->views = aligned_alloc(MN_CACHE_LINE, h->n * sizeof(*h->views));
    if (h->views != NULL) {
        memset(h->views, 0, h->n * sizeof(*h->views));
        for (uint32_t i = 0; i < h->n; i++) {
            h->views[i].event_fd = h->views[i].epoll_fd = -1;
        }
    }
    if (h->ring_mem == NULL || h->owners == NULL || h->rings == NULL || h->views == NULL) {
        return -ENOMEM;
    }
    memset(h->rings, 0, rings * sizeof(*h->rings));
    for (size_t i = 0; i < rings; i++) {
        h->rings[i].mem = h->ring_mem + i * ring_bytes;
        h->rings[i].size = ring_bytes;
    }
    for (uint32_t i = 0; i < h->n; i++) {
        int rc = view_init(h, i);

        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static bool table_ok(const struct mn_rss *rss, uint32_t n)
{
    for (uint32_t i = 0; rss != NULL && i < rss->table_size; i++) {
        if (rss->table[i] >= n) {
            return false;
        }
    }
    return true;
}

int mn_shared_nic_open(struct mn_nic **views, uint32_t n, struct mn_nic *nic,
                       const struct mn_shared_config *cfg)
{
    uint32_t ring_bytes = cfg->ring_bytes != 0 ? cfg->ring_bytes : RING_BYTES_DEFAULT;
    bool soft = nic->caps.queues == 1;
    struct shared_hub *h;
    int rc;

    if (n < 2 || n > MN_ENGINES_MAX || (!soft && nic->caps.queues != n) ||
        ring_bytes < MN_SHARED_RING_MIN_BYTES || ring_bytes > MN_SHARED_RING_MAX_BYTES ||
        (ring_bytes & (ring_bytes - 1)) != 0 || !table_ok(soft ? cfg->rss : nic->caps.rss, n)) {
        return -EINVAL;
    }
    h = calloc(1, sizeof(*h));
    if (h == NULL) {
        return -ENOMEM;
    }
    h->inner = nic;
    h->n = h->open = n;
    h->soft = soft;
    if (cfg->rss != NULL) {
        h->rss = *cfg->rss;
    } else {
        (void)mn_rss_init_default(&h->rss, n);
    }
    rc = hub_init(h, ring_bytes);
    if (rc < 0) {
        hub_free(h);
        return rc;
    }
    for (uint32_t i = 0; i < n; i++) {
        views[i] = &h->views[i].nic;
    }
    return 0;
}

void mn_shared_nic_close(struct mn_nic *view)
{
    struct mn_view *v = (struct mn_view *)view;

    if (view == NULL) {
        return;
    }
    MN_ASSERT(view->ops == &mn_shared_view_ops && !v->closed);
    v->closed = true;
    if (--v->hub->open == 0) {
        hub_free(v->hub);
    }
}

int mn_shared_nic_join(struct mn_nic *view, struct mn_stack *s)
{
    struct mn_view *v = (struct mn_view *)view;
    struct mn_share share = {.index = v->index,
                             .n = v->hub->n,
                             .give = mn_shared_give,
                             .ctx = v,
                             .owners = v->hub->owners};

    MN_ASSERT(view->ops == &mn_shared_view_ops);
    return mn_stack_join(s, &share);
}

void mn_shared_nic_set_now(struct mn_nic *view, uint64_t now_ns)
{
    ((struct mn_view *)view)->now_ns = now_ns;
}

void mn_shared_nic_get_stats(const struct mn_nic *view, struct mn_shared_stats *out)
{
    const struct mn_view *v = (const struct mn_view *)view;
    uint64_t values[MN_ARRAY_LEN(v->stats)];

    MN_ASSERT(view->ops == &mn_shared_view_ops);
    for (size_t i = 0; i < MN_ARRAY_LEN(values); i++) {
        values[i] = atomic_load_explicit(&v->stats[i], memory_order_relaxed);
    }
    memcpy(out, values, sizeof(*out));
}
