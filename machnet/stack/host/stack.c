/* SPDX-License-Identifier: MIT */
/* A stack: one engine with its memory, and what may be asked of it from outside. */
#include <stdlib.h>
#include <unistd.h>

#include "stack_int.h"

static void stack_shell_fini(struct mn_stack *s)
{
    pthread_cond_destroy(&s->done_cond);
    pthread_mutex_destroy(&s->done_lock);
    pthread_mutex_destroy(&s->call_lock);
    pthread_mutex_destroy(&s->chans_lock);
    free(s);
}

static struct mn_stack *stack_shell_new(void)
{
    struct mn_stack *s = calloc(1, sizeof(*s));

    if (s != NULL) {
        s->kick_fd = -1;
        s->lent_fd = -1;
        pthread_mutex_init(&s->chans_lock, NULL);
        pthread_mutex_init(&s->call_lock, NULL);
        pthread_mutex_init(&s->done_lock, NULL);
        pthread_cond_init(&s->done_cond, NULL);
    }
    return s;
}

/* Everything but the shell, which late callers may still look at. */
static void stack_release(struct mn_stack *s)
{
    mn_host_lanes_free(s);
    mn_os_unmap(s->mem, s->mem_bytes);
    s->mem = NULL;
    s->engine = NULL;
    if (s->kick_fd >= 0) {
        close(s->kick_fd);
        s->kick_fd = -1;
    }
    if (s->lent_fd >= 0) {
        close(s->lent_fd);
        s->lent_fd = -1;
    }
}

static int stack_init(struct mn_stack *s, const struct mn_config *cfg, struct mn_nic *nic,
                      struct mn_group *g)
{
    struct mn_host host = {.ctx = s, .wake = mn_host_wake};
    int rc;

    if (mn_config_check(cfg) != NULL) {
        return -EINVAL;
    }
    s->nic = nic;
    s->lanes_max = cfg->lanes_max;
    s->linger_ms = cfg->app_exit_linger_ms;
    s->ip = cfg->ip;
    s->lanes = calloc(cfg->lanes_max, sizeof(*s->lanes));
    s->mem_bytes = mn_engine_bytes(cfg);
    s->mem = mn_os_map(s->mem_bytes);
    if (s->lanes == NULL || s->mem == NULL) {
        return -ENOMEM;
    }
    if (g->realtime) { /* virtual time has no threads that sleep, and may have very many stacks */
        s->kick_fd = mn_os_event();
        if (s->kick_fd < 0) {
            return s->kick_fd;
        }
    }
    rc = mn_engine_open(&s->engine, s->mem, s->mem_bytes, cfg, nic, &host, mn_group_now(g));
    return rc < 0 ? rc : mn_group_add(g, s);
}

int mn_stack_open(struct mn_stack **out, const struct mn_config *cfg, struct mn_nic *nic,
                  struct mn_group *g)
{
    struct mn_stack *s = stack_shell_new();
    int rc;

    if (s == NULL) {
        return -ENOMEM;
    }
    if (!mn_group_enter(g)) {
        stack_shell_fini(s);
        return -EBUSY;
    }
    rc = stack_init(s, cfg, nic, g);
    mn_group_leave(g);
    if (rc < 0) {
        if (s->engine != NULL) {
            mn_engine_close(s->engine);
        }
        stack_release(s);
        stack_shell_fini(s);
        return rc;
    }
    *out = s;
    return 0;
}

int mn_stack_join(struct mn_stack *s, const struct mn_share *share)
{
    return s->threaded || s->engine == NULL ? -EINVAL : mn_engine_join(s->engine, share);
}

int mn_stack_watch_time(struct mn_stack *s, void (*set_now)(void *ctx, uint64_t now_ns), void *ctx)
{
    if (s->threaded) {
        return -EINVAL;
    }
    if (s->n_watchers == MN_HOST_WATCHERS) {
        return -ENOSPC;
    }
    s->watchers[s->n_watchers++] = (struct mn_watcher){.set_now = set_now, .ctx = ctx};
    return 0;
}

int64_t mn_stack_call(struct mn_stack *s, int64_t (*fn)(struct mn_stack *s, void *arg), void *arg)
{
    int64_t rc;

    if (s->threaded) {
        return mn_thread_call(s, fn, arg);
    }
    if (!mn_group_enter(s->group)) {
        return atomic_load(&s->closing) ? -EPIPE : -EBUSY;
    }
    rc = -EPIPE;
    if (s->engine != NULL && !atomic_load(&s->closing)) {
        rc = fn(s, arg);
        mn_stack_touch(s);
    }
    mn_group_leave(s->group);
    return rc;
}

int mn_stack_close(struct mn_stack *s)
{
    struct mn_group *g;

    if (s->engine == NULL) {
        return 0;
    }
    if (s->threaded) {
        if (getpid() != s->pid) {
            return -ECHILD;
        }
        if (atomic_exchange(&s->closing, true)) {
            return -EBUSY; /* another thread is at it */
        }
        mn_thread_stop(s);
        mn_host_chans_shut(s);
        mn_host_lents_shut(s);
        mn_engine_close(s->engine);
        stack_release(s);
        return 0;
    }
    g = s->group;
    if (!mn_group_enter(g)) {
        return -EBUSY;
    }
    if (s->engine == NULL) { /* another thread has closed it meanwhile */
        mn_group_leave(g);
        return 0;
    }
    if (g->driven && mn_host_chans_busy(s)) {
        mn_group_leave(g);
        return -EBUSY;
    }
    atomic_store(&s->closing, true);
    mn_host_chans_shut(s);
    mn_host_lents_shut(s);
    mn_engine_close(s->engine);
    mn_group_remove(g, s);
    stack_release(s);
    mn_group_leave(g);
    return 0;
}

void mn_stack_free(struct mn_stack *s)
{
    if (s != NULL && s->engine == NULL) {
        stack_shell_fini(s);
    }
}

int64_t mn_stack_poll(struct mn_stack *s, uint64_t now_ns)
{
    struct mn_group *g = s->group;
    int64_t done;

    if (s->threaded) {
        return -EINVAL;
    }
    if (s->engine == NULL) {
        return -EPIPE;
    }
    if (!mn_group_enter(g)) {
        return -EBUSY;
    }
    if (s->engine == NULL) { /* closed meanwhile */
        mn_group_leave(g);
        return -EPIPE;
    }
    if (g->driven) {
        mn_stack_touch(s);
        done = now_ns > g->now_ns ? -EINVAL : g->driver.settle(g->driver.ctx);
        mn_group_leave(g);
        return done;
    }
    if (g->realtime) {
        now_ns = mn_host_now_ns();
    }
    if (now_ns > g->now_ns) {
        g->now_ns = now_ns;
    }
    done = mn_stack_pass(s, g->now_ns);
    if (s->zombies > 0) {
        mn_host_lanes_reap(s);
    }
    mn_group_leave(g);
    return done;
}

uint64_t mn_stack_deadline(struct mn_stack *s)
{
    uint64_t due = MN_NEVER;

    if (s->threaded || s->engine == NULL) {
        return MN_NEVER;
    }
    if (!mn_group_enter(s->group)) {
        return 0;
    }
    if (s->engine != NULL) {
        due = mn_stack_due(s);
    }
    mn_group_leave(s->group);
    return due;
}

struct neighbor_args {
    uint32_t ip;
    const uint8_t *mac;
};

static int64_t call_neighbor(struct mn_stack *s, void *arg)
{
    const struct neighbor_args *a = arg;

    return mn_engine_neighbor(s->engine, a->ip, a->mac);
}

int mn_stack_neighbor(struct mn_stack *s, uint32_t ip, const uint8_t mac[6])
{
    struct neighbor_args a = {.ip = ip, .mac = mac};

    return (int)mn_stack_call(s, call_neighbor, &a);
}

struct run_args {
    int64_t (*fn)(void *arg);
    void *arg;
};

static int64_t call_run(struct mn_stack *s, void *arg)
{
    const struct run_args *a = arg;

    (void)s;
    return a->fn(a->arg);
}

int64_t mn_stack_run(struct mn_stack *s, int64_t (*fn)(void *arg), void *arg)
{
    struct run_args a = {.fn = fn, .arg = arg};

    return mn_stack_call(s, call_run, &a);
}

static int64_t call_stats(struct mn_stack *s, void *arg)
{
    memcpy(arg, mn_engine_stats(s->engine), sizeof(struct mn_stats));
    return 0;
}

int mn_stack_stats(struct mn_stack *s, struct mn_stats *out)
{
    return (int)mn_stack_call(s, call_stats, out);
}

#define STAT_NAME(name, what) #name,
#define STAT_DOC(name, what)  what,
static const char *const stat_names[] = {MN_STATS(STAT_NAME)};
static const char *const stat_docs[] = {MN_STATS(STAT_DOC)};
static_assert(sizeof(struct mn_stats) == sizeof(uint64_t) * MN_ARRAY_LEN(stat_names),
              "the counters are read as an array");

const char *mn_host_stat_name(uint32_t i)
{
    return i < MN_ARRAY_LEN(stat_names) ? stat_names[i] : NULL;
}

const char *mn_host_stat_doc(uint32_t i)
{
    return i < MN_ARRAY_LEN(stat_docs) ? stat_docs[i] : NULL;
}

static int64_t call_usage(struct mn_stack *s, void *arg)
{
    mn_engine_usage(s->engine, arg);
    return 0;
}

int mn_stack_usage(struct mn_stack *s, struct mn_usage *out)
{
    return (int)mn_stack_call(s, call_usage, out);
}

struct sockets_args {
    uint32_t *cursor;
    struct mn_sock_info *out;
    uint32_t n;
};

static int64_t call_sockets(struct mn_stack *s, void *arg)
{
    const struct sockets_args *a = arg;

    return mn_engine_sockets(s->engine, a->cursor, a->out, a->n);
}

int64_t mn_stack_sockets(struct mn_stack *s, uint32_t *cursor, struct mn_sock_info *out, uint32_t n)
{
    struct sockets_args a = {.cursor = cursor, .out = out, .n = n};

    return mn_stack_call(s, call_sockets, &a);
}

struct find_args {
    struct mn_sock_info *out;
    uint32_t local_ip, remote_ip;
    uint16_t local_port, remote_port;
};

static bool find_matches(const struct find_args *a, const struct mn_sock_info *i)
{
    bool listener = i->state == MN_TCP_LISTEN;

    return i->local_port == a->local_port && listener == (a->remote_port == 0) &&
           (listener || (i->remote_port == a->remote_port && i->remote_ip == a->remote_ip)) &&
           (i->local_ip == a->local_ip || i->local_ip == 0 || a->local_ip == 0);
}

static int64_t call_find(struct mn_stack *s, void *arg)
{
    const struct find_args *a = arg;
    struct mn_sock_info infos[32];
    uint32_t cursor = 0, n;

    while ((n = mn_engine_sockets(s->engine, &cursor, infos, MN_ARRAY_LEN(infos))) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            if (find_matches(a, &infos[i])) {
                *a->out = infos[i];
                return 0;
            }
        }
    }
    return -ENOENT;
}

int mn_stack_find(struct mn_stack *s, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip,
                  uint16_t remote_port, struct mn_sock_info *out)
{
    struct find_args a = {.out = out,
                          .local_ip = local_ip,
                          .remote_ip = remote_ip,
                          .local_port = local_port,
                          .remote_port = remote_port};

    return (int)mn_stack_call(s, call_find, &a);
}

static int64_t call_owing(struct mn_stack *s, void *arg)
{
    struct mn_sock_info infos[32];
    uint32_t cursor = 0, n, owing = 0;

    while ((n = mn_engine_sockets(s->engine, &cursor, infos, MN_ARRAY_LEN(infos))) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            uint8_t state = infos[i].state;

            owing += state != MN_TCP_CLOSED && state != MN_TCP_LISTEN &&
                     state != MN_TCP_FIN_WAIT_2 && state != MN_TCP_TIME_WAIT;
        }
    }
    *(uint32_t *)arg = owing;
    return 0;
}

int mn_stack_owing(struct mn_stack *s, uint32_t *out)
{
    return (int)mn_stack_call(s, call_owing, out);
}

void mn_stack_host_stats(const struct mn_stack *s, struct mn_host_stats *out)
{
    *out = (struct mn_host_stats){
        .passes = atomic_load_explicit(&s->passes, memory_order_relaxed),
        .sleeps = atomic_load_explicit(&s->sleeps, memory_order_relaxed),
        .calls = s->calls,
        .mem_bytes = s->mem_bytes,
        .lanes_lingering = s->zombies,
    };
}
