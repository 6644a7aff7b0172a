/* SPDX-License-Identifier: MIT */
/*
 * The host of an engine: everything that the sans-IO core leaves out. Memory, clock, randomness,
 * wake-ups, threads.
 *
 * A stack is one engine with its NIC. It is run in one of two ways:
 *   - stepped: it belongs to a group (struct mn_group), whose caller says what time it is (virtual
 *     time) or lets the group read the clock, and who polls. Stacks that are wired to each other
 *     share a group, so that one blocking call drives them all;
 *   - threaded: mn_stack_start makes a native thread that polls, and calls from other threads go
 *     through a mailbox that costs the thread one load per pass.
 *
 * A chan is the application's end of a channel: struct mn_app with memory, a wake-up and waiting.
 * Every call of this header may be made from any thread; what must not run at the same time (two
 * calls on one chan, two steps of one group) is refused with -EBUSY instead of corrupting memory.
 */
#ifndef MN_HOST_H
#define MN_HOST_H

#include "machnet/stack/core/chan_app.h"
#include "machnet/stack/core/engine.h"

/* How a stack's thread behaves when it finds nothing to do. */
enum mn_poll_mode {
    MN_POLL_ADAPTIVE = 0, /* polls on for spin_ns, then sleeps on descriptors until the deadline */
    MN_POLL_BUSY = 1,     /* never sleeps */
};

struct mn_stack;
struct mn_chan;
struct mn_group;

/* CLOCK_MONOTONIC, which is Python's time.monotonic_ns() too. */
uint64_t mn_host_now_ns(void);
/* A key from the kernel's generator: 0 or a negative errno. */
int mn_host_random(uint8_t *out, uint32_t bytes);
/* The same key for the same seed, everywhere. */
void mn_host_seeded(uint64_t seed, uint8_t *out, uint32_t bytes);

/* Groups: stacks that are stepped together. realtime: the group reads the clock at each step;
 * otherwise its time is virtual and starts at start_ns. */
struct mn_group *mn_group_new(bool realtime, uint64_t start_ns);
/* Only when no stack is in it any more. */
void mn_group_free(struct mn_group *g);
uint64_t mn_group_now(const struct mn_group *g);
/* Earliest deadline of its stacks, MN_NEVER without one. */
uint64_t mn_group_deadline(const struct mn_group *g);
/* Polls all stacks at the present time until a whole round finds nothing to do. 0; -EBUSY (another
 * thread is at it); -ELOOP when they keep each other busy without end. */
int mn_group_settle(struct mn_group *g);
/* Virtual time only: goes from deadline to deadline, settling at each, up to until_ns; then it is
 * until_ns. 0; -EINTR after a bounded amount of work, or when a channel was woken (mn_chan_notify),
 * to be called again; -EINVAL (in real time); errors as settle. MN_NEVER: as long as there is a
 * deadline; then time stays where it is. */
int mn_group_advance(struct mn_group *g, uint64_t until_ns);
/* Counts as a wake-up, so that a mn_group_advance that is under way ends at this moment of time. */
void mn_group_kick(struct mn_group *g);
/* Wake-ups of the group's channels so far; see mn_chan_woken. */
uint64_t mn_group_wakeups(const struct mn_group *g);

/* Who steps a virtual group instead of the group itself, which polls all stacks at each step: a
 * network that knows which of them have something to do. */
struct mn_group_driver {
    void *ctx;
    /* Lets the stacks do what there is to do at the group's present time; 0 or a negative errno. */
    int (*settle)(void *ctx);
    /* When there is something to do next: after a settle later than now, MN_NEVER. */
    uint64_t (*next)(void *ctx);
    /* Time is about to go on to *to_ns, which is later than now. 0, or a negative errno for the
     * caller: then it goes on to *to_ns only, which may have been made earlier, and stays there. */
    int (*go)(void *ctx, uint64_t *to_ns);
    /* The stack was called from outside or its application has been at its rings. Any time. */
    void (*touch)(void *ctx, struct mn_stack *s);
    /* The stack is being closed; its engine is gone. */
    void (*removed)(void *ctx, struct mn_stack *s);
};
/* For a virtual group that is still empty: 0, or -EINVAL. In a driven group a wait ends with -EINTR
 * when a channel is woken, as mn_group_advance does. */
int mn_group_drive(struct mn_group *g, const struct mn_group_driver *driver);

/* Who wants to know what applications give to be sent, and what they take: called for each send and
 * receive of a flow through this header's calls that has moved `len` bytes, or a message of them.
 * id tells flows between the same addresses apart. */
struct mn_group_tap {
    void *ctx;
    void (*given)(void *ctx, const struct mn_app_flow_info *flow, uint64_t id, const void *bytes,
                  uint64_t len);
    void (*taken)(void *ctx, const struct mn_app_flow_info *flow, uint64_t id, const void *bytes,
                  uint64_t len);
};
/* For a virtual group; NULL: nobody any more. */
void mn_group_set_tap(struct mn_group *g, const struct mn_group_tap *tap);

/* A stack that is stepped as part of group g. The NIC stays the caller's, until after
 * mn_stack_close. 0; -EINVAL (configuration); -ENOMEM; -EMFILE and what else eventfd says. */
int mn_stack_open(struct mn_stack **out, const struct mn_config *cfg, struct mn_nic *nic,
                  struct mn_group *g);
/* The stack is one of several with one address: see mn_engine_join. Before mn_stack_start and
 * before its first pass. 0, -EINVAL. */
int mn_stack_join(struct mn_stack *s, const struct mn_share *share);
/* Called with the present time before each pass: what stamps frames learns it so. At most four:
 * -ENOSPC. Before mn_stack_start. */
int mn_stack_watch_time(struct mn_stack *s, void (*set_now)(void *ctx, uint64_t now_ns), void *ctx);
/* From now on a thread of its own polls; the stack leaves its group, which must be realtime
 * (-EINVAL). cpu: pins the thread, -1: does not. spin_ns: see MN_POLL_ADAPTIVE. */
int mn_stack_start(struct mn_stack *s, enum mn_poll_mode mode, uint64_t spin_ns, int cpu);
/* Ends the thread if there is one, closes the chans and the engine and gives the memory back. From
 * now on calls answer -EPIPE, those on the chans -EBADF. Connections vanish without a word: see
 * mn_stack_owing. -EBUSY: another thread steps the group, or is closing the stack itself; or it is
 * a driven one, and the driver has called back from within a call on a chan of this stack. */
int mn_stack_close(struct mn_stack *s);
/* After mn_stack_close, when nothing refers to it any more; else nothing happens. NULL is fine. */
void mn_stack_free(struct mn_stack *s);
/* Connections that still owe their peer something: data, FIN, or an answer. */
int mn_stack_owing(struct mn_stack *s, uint32_t *out);

/* One pass of a stepped stack at the group's time; virtual time first goes on to now_ns if that is
 * later. Things done, or -EBUSY, -EINVAL (threaded). In a driven group it settles the group, and
 * time that would have to go on is -EINVAL. */
int64_t mn_stack_poll(struct mn_stack *s, uint64_t now_ns);
/* When a stepped stack wants its next pass; 0, which is now, while another thread steps it. */
uint64_t mn_stack_deadline(struct mn_stack *s);

/* Each runs in the engine's thread when there is one. 0, or a negative errno; -ECHILD in a process
 * that was forked off after mn_stack_start. */
int mn_stack_neighbor(struct mn_stack *s, uint32_t ip, const uint8_t mac[6]);
/* Anything else that has to be done between two passes; it must not block. What fn answers. */
int64_t mn_stack_run(struct mn_stack *s, int64_t (*fn)(void *arg), void *arg);
int mn_stack_stats(struct mn_stack *s, struct mn_stats *out);
/* The counters of struct mn_stats in order, each a uint64_t: its name, or NULL past the end. */
const char *mn_host_stat_name(uint32_t i);
const char *mn_host_stat_doc(uint32_t i);
int mn_stack_usage(struct mn_stack *s, struct mn_usage *out);
/* As mn_engine_sockets: fills up to n entries from *cursor on, returns how many. */
int64_t mn_stack_sockets(struct mn_stack *s, uint32_t *cursor, struct mn_sock_info *out,
                         uint32_t n);
/* The entry of one connection, or of a listener (remote 0, port 0): 0, -ENOENT. */
int mn_stack_find(struct mn_stack *s, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip,
                  uint16_t remote_port, struct mn_sock_info *out);

/* What the host did for a stack. */
struct mn_host_stats {
    uint64_t passes; /* of the thread */
    uint64_t sleeps; /* of the thread */
    uint64_t calls;  /* through the mailbox */
    uint64_t mem_bytes;
    uint32_t lanes_lingering; /* detached channels whose memory the engine still needs */
};
void mn_stack_host_stats(const struct mn_stack *s, struct mn_host_stats *out);

/* Channels. spin_ns: how long a wait looks before it sleeps; UINT64_MAX: it never sleeps.
 * 0, -EINVAL (geometry), -ENOMEM, -ENOSPC (lanes_max), and what eventfd says. */
int mn_chan_open(struct mn_chan **out, struct mn_stack *s, const struct mn_chan_geometry *geo,
                 uint64_t spin_ns);
/* Detaches: what was published is still sent, flows linger. linger_ms: MN_LINGER_DEFAULT
 * (app_exit_linger_ms), or a time; 0 resets them. From now on calls answer -EBADF, also one that
 * waits in another thread. -EBUSY: in a driven group, from within a call on the chan or a step. */
int mn_chan_close(struct mn_chan *c, uint32_t linger_ms);
/* After mn_chan_close or the close of its stack; else nothing happens. NULL is fine. */
void mn_chan_free(struct mn_chan *c);
/* For loops in C that own the chan: no other call of this header meanwhile but mn_chan_wait and
 * mn_chan_look. mn_chan_lane_app is NULL where there is no such lane; mn_chan_flow_lane makes the
 * flow's id what it is on its lane. */
struct mn_app *mn_chan_lane_app(struct mn_chan *c, uint32_t lane);
struct mn_app *mn_chan_flow_lane(struct mn_chan *c, uint32_t *flow);
/* For such a loop where it finds nothing: notices that the engines' process has ended, which its
 * mn_app calls then say. Costs little when called often. */
void mn_chan_look(struct mn_chan *c);
uint32_t mn_chan_lane_no(const struct mn_chan *c);

/*
 * Channels of other processes. The process of the stacks lends one: it makes the memory and every
 * descriptor, and hands them over (say by SCM_RIGHTS). The application attaches to them.
 */
#define MN_LANES_MAX 16 /* engines that a channel can span */
struct mn_chan_fds {
    int memfd; /* sealed against shrinking, growing and further seals */
    int wake;  /* engines to application: a socket; hangs up when the lender's process ends */
    int kick[MN_LANES_MAX]; /* application to engine: eventfds */
    uint32_t n_lanes;
};
struct mn_lent;
/* A channel over n stacks: lane i belongs to stacks[i]; geo->n_lanes is not looked at. *fds is for
 * the application: to be sent, then given to mn_chan_fds_close. Stacks that are stepped hear of the
 * application when they are stepped. 0; -EINVAL (geometry: flows_max is at most 65535 divided by n,
 * rounded up to a power of two; n), -ENOMEM, -ENOSPC (lanes_max), -EPIPE (a closed stack), and what
 * memfd_create, eventfd and so on say. */
int mn_lend(struct mn_lent **out, struct mn_stack *const *stacks, uint32_t n,
            const struct mn_chan_geometry *geo, struct mn_chan_fds *fds);
/* The application is gone, or has to go: what it had published is still sent, flows linger as after
 * mn_chan_close. Frees l. A closed stack is fine, a freed one is not. 0, -EBUSY (a stepped stack is
 * being stepped by another thread; nothing was done), -ECHILD. */
int mn_lent_close(struct mn_lent *l, uint32_t linger_ms);
/* Why the channel is dead on one of its lanes (the application broke the rules), as a positive
 * errno; 0 while it lives; -EPIPE (a closed stack), -EBUSY, -ECHILD. */
int mn_lent_dead(const struct mn_lent *l);
/* Which channel of stacks[i] it is: struct mn_sock_info's `lane`. -EINVAL. */
int mn_lent_lane(const struct mn_lent *l, uint32_t i);
void mn_chan_fds_close(struct mn_chan_fds *fds);
/* A chan over such descriptors, which become its own on success. The end of the lender's process,
 * or of the loan, is -EPIPE for all calls, once everything that had come in was received. 0;
 * -EPROTO (not a channel of this version, not sealed), -EINVAL (descriptors, lanes), -ENOMEM, and
 * what mmap and so on say. */
int mn_chan_attach(struct mn_chan **out, const struct mn_chan_fds *fds, uint64_t spin_ns);
/* In a forked child: calls on this copy of an attached chan answer -EBADF from now on. It is for a
 * handler of fork: no call of the parent that was under way there ever ends. */
void mn_chan_forsake(struct mn_chan *c);
/* What the chan was made with; -EBADF once closed. */
int mn_chan_geometry(struct mn_chan *c, struct mn_chan_geometry *out);
/* Address of the engine of an attached chan's lane, in host order; 0 when there is none. */
uint32_t mn_chan_ip(const struct mn_chan *c, uint32_t lane);

/* Waits until the engine has published something since the caller looked last: 1; 0 at the timeout
 * (UINT64_MAX: none), counted in the time of the stack; -EINTR on a signal, and every 100 ms so
 * that the caller can look for one; -EDEADLK when in virtual time nothing can ever happen; -EBUSY.
 */
int mn_chan_wait(struct mn_chan *c, uint64_t timeout_ns);
/* The chan's descriptor for selectors: from now on it polls readable unless the last look at the
 * channel (a receive that found nothing) left it empty. */
int mn_chan_fd(struct mn_chan *c);
/* The descriptor for epoll with EPOLLET, for any number of waiters at once: there is an edge
 * whenever something comes in after a call that answered "not now" (-EAGAIN, or 0 of
 * mn_chan_result). A chan's descriptor is used one way or the other: -EINVAL. */
int mn_chan_edge_fd(struct mn_chan *c);
/* Takes in what the engine has published and makes the descriptor quiet until it publishes again:
 * what is there is to be looked for after this. 1: quiet; 0: not now, and it stays readable. */
int mn_chan_arm(struct mn_chan *c);
/* Asks for wake-ups without a descriptor (stepped stacks), and whether there was one since. */
int mn_chan_notify(struct mn_chan *c, bool on);
bool mn_chan_woken(struct mn_chan *c);
/* The same of n chans at once: writes the indices of those to `out`, returns how many. */
uint32_t mn_chans_woken(struct mn_chan *const *chans, uint32_t n, uint32_t *out);
/* The present time as the chan's stack sees it. */
uint64_t mn_chan_now(const struct mn_chan *c);

/* The fast calls: each takes the chan for itself, settles the group of a stepped stack first, and
 * then is the mn_app call of the same name. */
#define MN_CHAN_LEN_BITS 24
#define MN_CHAN_EVENT    (-4096) /* a flow ended: *event says which and why */
struct mn_chan_event {
    uint32_t flow;
    int32_t status; /* positive errno */
    uint32_t len;   /* after -EMSGSIZE: bytes of the message at the head */
};
int mn_chan_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len);
/* The same for those who take the peer's end of sending for the flow's end: -ENOTCONN then. Looks
 * for the end of the engines' process too, as receives do. Attached chans only. */
int mn_chan_send_open(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len);
/* flow << MN_CHAN_LEN_BITS | bytes; -EAGAIN; -EMSGSIZE (it stays); MN_CHAN_EVENT; -EPIPE; -EBUSY.
 */
int64_t mn_chan_recv(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_event *event);
/* n messages that lie behind each other in buf: how many were taken, in order (> 0 unless n is 0);
 * when the first was not, what mn_chan_send says of it. One wake-up for all. */
int64_t mn_chan_send_many(struct mn_chan *c, uint32_t flow, const void *buf, const uint32_t *lens,
                          uint32_t n);
struct mn_chan_got {
    uint32_t flow;
    uint32_t len;
};
/* Up to n messages, behind each other in buf, as many as fit there and lie before the end of a
 * flow: how many; or what mn_chan_recv says when there is none. */
int64_t mn_chan_recv_many(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_got *got,
                          uint32_t n, struct mn_chan_event *event);
int64_t mn_chan_stream_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len,
                            uint32_t flags);
int64_t mn_chan_stream_recv(struct mn_chan *c, uint32_t flow, void *buf, uint64_t size,
                            uint32_t flags);
int mn_chan_shutdown(struct mn_chan *c, uint32_t flow);
int64_t mn_chan_accept(struct mn_chan *c, uint32_t listener); /* flow id or -EAGAIN */
int mn_chan_close_flow(struct mn_chan *c, uint32_t flow, uint32_t linger_ms);
int mn_chan_flow_info(struct mn_chan *c, uint32_t flow, struct mn_app_flow_info *out);
int64_t mn_chan_flows(struct mn_chan *c, uint32_t *ids, uint32_t n);
int64_t mn_chan_ready(struct mn_chan *c);
int64_t mn_chan_listen(struct mn_chan *c, uint32_t ip, uint16_t port, uint32_t proto,
                       uint32_t backlog);
int64_t mn_chan_unlisten(struct mn_chan *c, uint32_t listener);
int64_t mn_chan_connect(struct mn_chan *c, uint32_t local_ip, uint16_t local_port,
                        uint32_t remote_ip, uint16_t remote_port, uint32_t proto,
                        uint32_t timeout_ms);
int64_t mn_chan_setopt(struct mn_chan *c, uint32_t flow, uint32_t opt, uint64_t value);
int64_t mn_chan_getopt(struct mn_chan *c, uint32_t flow, uint32_t opt);
int mn_chan_result(struct mn_chan *c, int64_t token, struct mn_ctl_evt *evt);
int mn_chan_forget(struct mn_chan *c, int64_t token);
/* Which of n flows are ready for what: ready[i] is a mask of MN_READY_STREAM and MN_READY_SPACE. */
int mn_chan_select(struct mn_chan *c, const uint32_t *flows, uint8_t *ready, uint32_t n);

#endif
