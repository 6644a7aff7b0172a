/* SPDX-License-Identifier: MIT */
/* What Python sees of the host. */

enum mn_poll_mode { MN_POLL_ADAPTIVE, MN_POLL_BUSY, ... };

struct mn_stack;
struct mn_chan;
struct mn_group;

uint64_t mn_host_now_ns(void);

int mn_host_random(uint8_t *out, uint32_t bytes);

void mn_host_seeded(uint64_t seed, uint8_t *out, uint32_t bytes);

struct mn_group *mn_group_new(bool realtime, uint64_t start_ns);

void mn_group_free(struct mn_group *g);
uint64_t mn_group_now(const struct mn_group *g);

uint64_t mn_group_deadline(const struct mn_group *g);

int mn_group_settle(struct mn_group *g);

int mn_group_advance(struct mn_group *g, uint64_t until_ns);
void mn_group_kick(struct mn_group *g);

uint64_t mn_group_wakeups(const struct mn_group *g);

int mn_stack_open(struct mn_stack **out, const struct mn_config *cfg, struct mn_nic *nic,
                  struct mn_group *g);

int mn_stack_watch_time(struct mn_stack *s, void (*set_now)(void *ctx, uint64_t now_ns), void *ctx);

int mn_stack_start(struct mn_stack *s, enum mn_poll_mode mode, uint64_t spin_ns, int cpu);

int mn_stack_close(struct mn_stack *s);

void mn_stack_free(struct mn_stack *s);

int mn_stack_owing(struct mn_stack *s, uint32_t *out);

int64_t mn_stack_poll(struct mn_stack *s, uint64_t now_ns);
uint64_t mn_stack_deadline(struct mn_stack *s);

int mn_stack_neighbor(struct mn_stack *s, uint32_t ip, const uint8_t mac[6]);
int64_t mn_stack_run(struct mn_stack *s, int64_t (*fn)(void *arg), void *arg);
int mn_stack_stats(struct mn_stack *s, struct mn_stats *out);
const char *mn_host_stat_name(uint32_t i);
const char *mn_host_stat_doc(uint32_t i);
int mn_stack_usage(struct mn_stack *s, struct mn_usage *out);

int64_t mn_stack_sockets(struct mn_stack *s, uint32_t *cursor, struct mn_sock_info *out,
                         uint32_t n);

int mn_stack_find(struct mn_stack *s, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip,
                  uint16_t remote_port, struct mn_sock_info *out);

struct mn_host_stats {
    uint64_t passes;
    uint64_t sleeps;
    uint64_t calls;
    uint64_t mem_bytes;
    uint32_t lanes_lingering;
};
void mn_stack_host_stats(const struct mn_stack *s, struct mn_host_stats *out);

int mn_chan_open(struct mn_chan **out, struct mn_stack *s, const struct mn_chan_geometry *geo,
                 uint64_t spin_ns);

int mn_chan_close(struct mn_chan *c, uint32_t linger_ms);

void mn_chan_free(struct mn_chan *c);

uint32_t mn_chan_lane_no(const struct mn_chan *c);

#define MN_LANES_MAX ...
struct mn_chan_fds {
    int memfd;
    int wake;
    int kick[...];
    uint32_t n_lanes;
};
struct mn_lent;
int mn_lend(struct mn_lent **out, struct mn_stack *const *stacks, uint32_t n,
            const struct mn_chan_geometry *geo, struct mn_chan_fds *fds);
int mn_lent_close(struct mn_lent *l, uint32_t linger_ms);
int mn_lent_dead(const struct mn_lent *l);
int mn_lent_lane(const struct mn_lent *l, uint32_t i);
void mn_chan_fds_close(struct mn_chan_fds *fds);
int mn_chan_attach(struct mn_chan **out, const struct mn_chan_fds *fds, uint64_t spin_ns);
int mn_chan_geometry(struct mn_chan *c, struct mn_chan_geometry *out);
uint32_t mn_chan_ip(const struct mn_chan *c, uint32_t lane);

int mn_chan_wait(struct mn_chan *c, uint64_t timeout_ns);

int mn_chan_fd(struct mn_chan *c);
int mn_chan_edge_fd(struct mn_chan *c);

int mn_chan_arm(struct mn_chan *c);

int mn_chan_notify(struct mn_chan *c, bool on);
bool mn_chan_woken(struct mn_chan *c);
uint32_t mn_chans_woken(struct mn_chan *const *chans, uint32_t n, uint32_t *out);

uint64_t mn_chan_now(const struct mn_chan *c);

#define MN_CHAN_LEN_BITS ...
#define MN_CHAN_EVENT    ...
struct mn_chan_event {
    uint32_t flow;
    int32_t status;
    uint32_t len;
};
int mn_chan_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len);

int64_t mn_chan_recv(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_event *event);
int64_t mn_chan_send_many(struct mn_chan *c, uint32_t flow, const void *buf, const uint32_t *lens,
                          uint32_t n);
struct mn_chan_got {
    uint32_t flow;
    uint32_t len;
};
int64_t mn_chan_recv_many(struct mn_chan *c, void *buf, uint64_t size, struct mn_chan_got *got,
                          uint32_t n, struct mn_chan_event *event);
int64_t mn_chan_stream_send(struct mn_chan *c, uint32_t flow, const void *buf, uint64_t len,
                            uint32_t flags);
int64_t mn_chan_stream_recv(struct mn_chan *c, uint32_t flow, void *buf, uint64_t size,
                            uint32_t flags);
int mn_chan_shutdown(struct mn_chan *c, uint32_t flow);
int64_t mn_chan_accept(struct mn_chan *c, uint32_t listener);
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

int mn_chan_select(struct mn_chan *c, const uint32_t *flows, uint8_t *ready, uint32_t n);

void mn_config_defaults(struct mn_config *cfg);
const char *mn_config_check(const struct mn_config *cfg);
