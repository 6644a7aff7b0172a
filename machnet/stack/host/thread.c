/* SPDX-License-Identifier: MIT */
/* A stack's own thread: polling, sleeping, and the mailbox through which others reach the engine.
 */
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "stack_int.h"

/* A NIC without a descriptor can't wake us: it is looked at after naps that get longer. */
#define NAP_MIN_NS (100 * MN_NS_PER_US)
#define NAP_MAX_NS (10 * MN_NS_PER_MS)

static void thread_run_call(struct mn_stack *s, struct mn_call *call)
{
    atomic_store_explicit(&s->call, NULL, memory_order_relaxed);
    s->calls++;
    call->result = call->fn(s, call->arg);
    pthread_mutex_lock(&s->done_lock);
    call->done = true;
    pthread_cond_signal(&s->done_cond);
    pthread_mutex_unlock(&s->done_lock);
}

/* The engine said that it has nothing to do: waits for a frame, an application, a call, or time. */
static void thread_block(struct mn_stack *s, uint64_t timeout_ns, uint64_t nap_ns)
{
    /* What is -1 is left out by the kernel. */
    struct pollfd fds[3] = {{.fd = s->kick_fd, .events = POLLIN},
                            {.fd = s->lent_fd, .events = POLLIN},
                            {.fd = s->nic->rx_fd, .events = POLLIN}};
    const short broken = POLLERR | POLLHUP | POLLNVAL;

    if (s->nic->rx_fd < 0) {
        mn_os_poll(fds, 2, mn_min_u64(timeout_ns, nap_ns));
    } else if (mn_os_poll(fds, 3, timeout_ns) > 0 && (fds[2].revents & broken) != 0) {
        /* A device that went away would answer every poll at once. */
        mn_os_poll(fds, 2, mn_min_u64(timeout_ns, nap_ns));
    }
    if ((fds[0].revents & POLLIN) != 0) {
        mn_os_event_clear(s->kick_fd);
    }
    if ((fds[1].revents & POLLIN) != 0) {
        mn_host_lents_heard(s);
    }
}

static void thread_sleep(struct mn_stack *s, uint64_t now_ns, uint64_t nap_ns)
{
    uint64_t deadline = mn_stack_due(s);

    if (deadline > now_ns && mn_engine_prepare_sleep(s->engine)) {
        /* Sequentially consistent, as is the caller's pair: one of us sees the other. */
        atomic_store(&s->sleeping, 1);
        if (mn_stack_arm(s, true) && atomic_load(&s->call) == NULL) {
            atomic_fetch_add_explicit(&s->sleeps, 1, memory_order_relaxed);
            thread_block(s, deadline == MN_NEVER ? UINT64_MAX : deadline - now_ns, nap_ns);
        }
        (void)mn_stack_arm(s, false);
        atomic_store(&s->sleeping, 0);
    }
    mn_engine_cancel_sleep(s->engine);
}

static void *thread_main(void *arg)
{
    struct mn_stack *s = arg;
    uint64_t useful_ns = mn_host_now_ns();
    uint64_t nap_ns = NAP_MIN_NS;

    while (!s->stop) {
        uint64_t now_ns = mn_host_now_ns();
        uint32_t done = mn_stack_pass(s, now_ns);
        struct mn_call *call = atomic_load_explicit(&s->call, memory_order_acquire);

        atomic_store_explicit(&s->passes,
                              atomic_load_explicit(&s->passes, memory_order_relaxed) + 1,
                              memory_order_relaxed);
        if (s->zombies > 0) {
            mn_host_lanes_reap(s);
        }
        if (MN_UNLIKELY(call != NULL)) {
            thread_run_call(s, call);
            useful_ns = now_ns;
        } else if (done > 0) {
            useful_ns = now_ns;
            nap_ns = NAP_MIN_NS;
        } else if (s->mode == MN_POLL_BUSY) {
            mn_os_relax();
        } else if (now_ns - useful_ns < s->spin_ns) {
            /* An application on the same core may be what we wait for. */
            (void)sched_yield();
        } else {
            thread_sleep(s, now_ns, nap_ns);
            nap_ns = mn_min_u64(2 * nap_ns, NAP_MAX_NS);
        }
    }
    return NULL;
}

int64_t mn_thread_call(struct mn_stack *s, int64_t (*fn)(struct mn_stack *s, void *arg), void *arg)
{
    struct mn_call call = {.fn = fn, .arg = arg};

    /* The thread did not come along when this process was forked off. */
    if (getpid() != s->pid) {
        return -ECHILD;
    }
    pthread_mutex_lock(&s->call_lock);
    if (s->stop) {
        pthread_mutex_unlock(&s->call_lock);
        return -EPIPE;
    }
    atomic_store(&s->call, &call);
    if (atomic_load(&s->sleeping) != 0) {
        mn_os_event_raise(s->kick_fd);
    }
    pthread_mutex_lock(&s->done_lock);
    while (!call.done) {
        pthread_cond_wait(&s->done_cond, &s->done_lock);
    }
    pthread_mutex_unlock(&s->done_lock);
    pthread_mutex_unlock(&s->call_lock);
    return call.result;
}

static int64_t call_stop(struct mn_stack *s, void *arg)
{
    (void)arg;
    s->stop = true;
    return 0;
}

void mn_thread_stop(struct mn_stack *s)
{
    if (mn_thread_call(s, call_stop, NULL) == 0) {
        pthread_join(s->thread, NULL);
    }
}

static int thread_create(struct mn_stack *s, int cpu)
{
    sigset_t all, old;
    pthread_attr_t attr;
    int rc = pthread_attr_init(&attr);

    if (rc == 0 && cpu >= 0) {
        cpu_set_t cpus;

        CPU_ZERO(&cpus);
        CPU_SET((size_t)cpu, &cpus);
        rc = pthread_attr_setaffinity_np(&attr, sizeof(cpus), &cpus);
    }
    if (rc == 0) {
        /* Signals are for the application's threads. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = pthread_create(&s->thread, &attr, thread_main, s);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    pthread_attr_destroy(&attr);
    return rc;
}

int mn_stack_start(struct mn_stack *s, enum mn_poll_mode mode, uint64_t spin_ns, int cpu)
{
    struct mn_group *g = s->group;
    int rc;

    if (s->threaded || s->engine == NULL || !g->realtime || cpu >= CPU_SETSIZE) {
        return -EINVAL;
    }
    if (!mn_group_enter(g)) {
        return -EBUSY;
    }
    s->mode = mode;
    s->spin_ns = spin_ns;
    s->pid = getpid();
    /* Chans that exist already go on as a threaded stack's. */
    rc = s->chans == NULL ? thread_create(s, cpu) : EBUSY;
    if (rc == 0) {
        mn_group_remove(g, s);
        s->threaded = true;
        s->group = NULL;
        pthread_setname_np(s->thread, "machnet-engine");
    }
    mn_group_leave(g);
    return -rc;
}
