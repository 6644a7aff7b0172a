/* SPDX-License-Identifier: MIT */
/* Stacks, groups and chans from inside: what the host's files share. */
#ifndef MN_HOST_STACK_INT_H
#define MN_HOST_STACK_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "host.h"
#include "os.h"

#define MN_HOST_WATCHERS 4u
/* A wait in C returns to its caller after this time, so that Python can run signal handlers. */
#define MN_HOST_SLICE_NS (100 * MN_NS_PER_MS)

/* What the lanes of a channel that was lent to another process have in common. Whoever refers to it
 * holds a reference: the lender, and each engine for as long as flows linger. */
struct mn_host_shared {
    void *region;
    uint64_t bytes;
    int wake_fd; /* a byte sent here wakes the application; its hang-up tells it of our end */
    _Atomic uint32_t refs;
};

/* The engine's half of a channel. It outlives the chan while flows linger. */
struct mn_host_lane {
    void *region;
    void *priv;
    uint64_t region_bytes;
    uint64_t priv_bytes;
    struct mn_chan *chan;          /* of this process; NULL once detached */
    struct mn_host_shared *shared; /* of another process: owns the region instead of us */
    struct mn_lane_shared *flags;  /* in the region, while `lent` */
    bool lent;                     /* the application of `shared` is attached */
    bool used;
};

struct mn_watcher {
    void (*set_now)(void *ctx, uint64_t now_ns);
    void *ctx;
};

/* A function that must run where the engine runs. */
struct mn_call {
    int64_t (*fn)(struct mn_stack *s, void *arg);
    void *arg;
    int64_t result;
    bool done;
};

struct mn_stack {
    struct mn_engine *engine; /* NULL once closed */
    _Atomic bool closing;     /* takes no more calls */
    void *mem;
    uint64_t mem_bytes;
    struct mn_nic *nic;
    struct mn_group *group; /* NULL while threaded */
    void *driver_slot;      /* the driver's own */
    struct mn_host_lane *lanes;
    uint32_t lanes_max;
    uint32_t zombies; /* detached lanes whose memory the engine still needs */
    uint32_t linger_ms;
    uint32_t ip;
    uint32_t n_watchers;
    struct mn_watcher watchers[MN_HOST_WATCHERS];

    pthread_mutex_t chans_lock;
    struct mn_chan *chans; /* open ones */

    int kick_fd; /* the thread sleeps on it */
    int lent_fd; /* and on this: an epoll descriptor with the kicks of other processes, or -1 */
    bool threaded;
    bool stop; /* thread only */
    enum mn_poll_mode mode;
    uint64_t spin_ns;
    pid_t pid;
    pthread_t thread;
    pthread_mutex_t call_lock; /* one caller at a time */
    pthread_mutex_t done_lock;
    pthread_cond_t done_cond;
    struct mn_call *_Atomic call;
    _Atomic uint32_t sleeping;
    _Atomic uint64_t passes, sleeps;
    uint64_t calls;
};

struct mn_group {
    bool realtime;
    bool driven;
    bool tapped;
    _Atomic uint32_t busy;
    uint32_t n, cap;
    struct mn_stack **stacks;
    _Atomic uint64_t now_ns;
    uint64_t wakeups;
    struct mn_group_driver driver;
    struct mn_group_tap tap;
};

/* What the descriptor of a chan promises to those who wait for it. */
enum mn_fd_mode {
    MN_FD_NONE = 0, /* nobody waits for it but mn_chan_wait */
    MN_FD_LEVEL,    /* readable until a look finds the channel empty */
    MN_FD_EDGE,     /* each wake-up is an edge; never cleared, because many wait for it */
};

struct mn_chan {
    _Atomic uint32_t busy;
    _Atomic uint32_t closing;
    struct mn_app *app; /* of the first lane, which usually is the only one */
    uint32_t n_lanes;
    uint32_t lane_shift;    /* the lane of a flow id is what is above this in its slot */
    struct mn_group *group; /* NULL when the stack is threaded */
    struct mn_stack *stack; /* NULL once closed */
    void *app_mem;
    uint64_t app_bytes;
    uint64_t spin_ns;
    uint32_t lane;
    int wake_fd;
    enum mn_fd_mode fd_mode;
    bool notify;
    _Atomic bool woken;
    struct mn_chan *next; /* in the stack's list */
    struct mn_chan **pprev;
    struct mn_chan_geometry geo;
    struct mn_remote *remote; /* NULL for an engine of this process */
};

/* What a chan has beyond that when its engines are in another process. */
struct mn_remote {
    void *region;
    uint64_t region_bytes;
    int wake_sock; /* the engines' wake-ups; its hang-up is their end */
    int poll_fd;   /* epoll of wake_sock and the chan's wake_fd: what the user waits for. Or -1 */
    int kicks[MN_LANES_MAX];
    struct mn_app *apps[MN_LANES_MAX];
    int64_t looked; /* when the hang-up was last looked for, in ticks of the coarse clock */
    bool gone;
    pid_t pid;
    uint32_t turn; /* the lane that is looked at first */
    uint32_t connect_turn, accept_turn;
    struct mn_multi *multis; /* commands to several lanes, and listeners on them */
    uint32_t last_multi;
};

/* How many of a flow id's slot bits name the lane. */
static inline uint32_t mn_lane_bits(uint32_t n_lanes)
{
    uint32_t bits = 0;

    while ((1u << bits) < n_lanes) {
        bits++;
    }
    return bits;
}

/* lanes.c: gives back what the application's end has. */
void mn_host_chan_release(struct mn_chan *c);
/* attach.c */
void mn_remote_release(struct mn_chan *c);
/* Whether the other process was found to have ended just now: the apps say -EPIPE from here on.
 * Cheap: it asks the kernel at most once in a tick of its clock. */
bool mn_remote_look(struct mn_chan *c);
/* As mn_os_poll for the wake-ups of the chan, own or remote. */
int mn_remote_poll(struct mn_chan *c, uint64_t timeout_ns);
/* Takes out the wake-ups so far. */
void mn_remote_clear(struct mn_chan *c);
int mn_remote_fd(struct mn_chan *c);

static inline bool mn_group_enter(struct mn_group *g)
{
    return atomic_exchange_explicit(&g->busy, 1, memory_order_acquire) == 0;
}

static inline void mn_group_leave(struct mn_group *g)
{
    atomic_store_explicit(&g->busy, 0, memory_order_release);
}

/* The stack of a driven group has something new to look at. */
static inline void mn_stack_touch(struct mn_stack *s)
{
    if (s != NULL && s->group != NULL && s->group->driven) {
        s->group->driver.touch(s->group->driver.ctx, s);
    }
}

int mn_group_add(struct mn_group *g, struct mn_stack *s);
void mn_group_remove(struct mn_group *g, struct mn_stack *s);
/* As mn_chan_wait, for a chan of stack s, a stepped one: returns once mn_app_poll finds something.
 */
int mn_group_wait(struct mn_group *g, struct mn_stack *s, struct mn_app *app, uint64_t timeout_ns);

/* One pass of the engine, where the engine runs; things done. A NIC that had something to send on
 * has sent it: its neighbour is to be polled too. */
static inline uint32_t mn_stack_pass(struct mn_stack *s, uint64_t now_ns)
{
    uint32_t done;
    bool due;

    for (uint32_t i = 0; i < s->n_watchers; i++) {
        s->watchers[i].set_now(s->watchers[i].ctx, now_ns);
    }
    due = s->nic->wake_ns != 0 && s->nic->wake_ns <= now_ns;
    done = mn_engine_poll(s->engine, now_ns) + due;
    return done + s->nic->moved;
}

/* Before and after sleeping on the NIC's descriptor; false: there is something to do instead. */
static inline bool mn_stack_arm(struct mn_stack *s, bool on)
{
    return s->nic->ops->rx_arm == NULL || s->nic->ops->rx_arm(s->nic, 0, on);
}

/* When the stack wants its next pass: the engine, or frames that its NIC holds back. */
static inline uint64_t mn_stack_due(const struct mn_stack *s)
{
    uint64_t engine_ns = mn_engine_deadline(s->engine);
    uint64_t nic_ns = s->nic->wake_ns;

    return nic_ns != 0 ? mn_min_u64(engine_ns, nic_ns) : engine_ns;
}

/* Runs fn where the engine runs and gives its answer; -EPIPE when closed, -EBUSY, -ECHILD. */
int64_t mn_stack_call(struct mn_stack *s, int64_t (*fn)(struct mn_stack *s, void *arg), void *arg);
/* The mailbox of a threaded stack; mn_stack_call chooses. */
int64_t mn_thread_call(struct mn_stack *s, int64_t (*fn)(struct mn_stack *s, void *arg), void *arg);
void mn_thread_stop(struct mn_stack *s);

/* Where the engine runs: gives back the memory of lanes that have ended. */
void mn_host_lanes_reap(struct mn_stack *s);
void mn_host_lanes_free(struct mn_stack *s);
void mn_host_wake(void *ctx, uint32_t lane);
/* lend.c: gives up a reference. */
void mn_host_shared_put(struct mn_host_shared *sh);
/* The stack is at its end, and says so to the applications of other processes. */
void mn_host_lents_shut(struct mn_stack *s);
/* The thread was woken by another process: makes lent_fd quiet. */
void mn_host_lents_heard(struct mn_stack *s);
/* Takes all chans away from their users, waiting for calls that are under way. The engine must take
 * no more calls. */
void mn_host_chans_shut(struct mn_stack *s);
/* Whether one of them is in a call. */
bool mn_host_chans_busy(struct mn_stack *s);

#endif
