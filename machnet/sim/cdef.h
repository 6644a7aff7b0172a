/* SPDX-License-Identifier: MIT */
/* What Python sees of the NIC drivers and the middleware. */

struct mn_nic;

#define MN_VNET_HDR_BYTES     ...
#define MN_TAP_ERR_BYTES      ...
#define MN_PCAPNG_FRAME_MAX   ...
#define MN_PCAPNG_COMMENT_MAX ...
#define MN_PCAPNG_DIR_NONE    ...
#define MN_PCAPNG_DIR_IN      ...
#define MN_PCAPNG_DIR_OUT     ...

struct mn_pkt_meta {
    uint16_t gso_size;
    uint16_t l4_off;
    uint16_t csum_off;
    uint8_t csum;
    uint8_t pieces;
};

struct mn_nic_info {
    uint32_t mtu;
    uint32_t rx_max_frame;
    uint32_t tx_max_frame;
    uint16_t queues;
    uint8_t tx_csum_tcp;
    uint8_t tx_csum_udp;
    uint8_t tx_gso;
    uint8_t rx_csum_trusted;
    uint8_t link_up;
    uint8_t mac[6];
    int rx_fd;
    uint64_t wake_ns;
    ...;
};

void mn_nic_get_info(const struct mn_nic *nic, struct mn_nic_info *out);
int64_t mn_nic_rx_bytes(struct mn_nic *nic, uint32_t queue, uint8_t *buf, uint32_t size,
                        struct mn_pkt_meta *meta);
int mn_nic_tx_bytes(struct mn_nic *nic, uint32_t queue, const uint8_t *frame, uint32_t len,
                    const struct mn_pkt_meta *meta);
int64_t mn_nic_probe_alloc(struct mn_nic *nic, uint32_t queue, uint32_t size);
bool mn_nic_arm(struct mn_nic *nic, uint32_t queue, bool on);
int mn_nic_forward(struct mn_nic *from, struct mn_nic *to, uint32_t n);

struct mn_wire_config {
    uint32_t mtu;
    uint32_t queue_frames;
    uint32_t pool_pkts;
    uint32_t tx_max_frame;
    uint8_t mac[2][6];
    bool tx_csum_tcp;
    bool tx_csum_udp;
    bool tx_gso;
    bool rx_csum_trusted;
    bool tx_backpressure;
    uint32_t queues[2];
    const struct mn_rss *rss[2];
    bool rss_hidden;
    ...;
};

struct mn_wire_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_drops;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_drops;
    uint64_t tx_full;
    uint64_t pool_live;
    uint64_t pool_high;
    ...;
};

struct mn_wire;
int mn_wire_pair(const struct mn_wire_config *cfg, struct mn_wire **a, struct mn_wire **b);
int mn_wire_single(const struct mn_wire_config *cfg, struct mn_wire **out);
void mn_wire_close(struct mn_wire *w);
struct mn_nic *mn_wire_nic(struct mn_wire *w);
int mn_wire_spread(struct mn_wire *w, const struct mn_rss *rss);
void mn_wire_set_now(struct mn_wire *w, uint64_t now_ns);
void mn_wire_get_stats(const struct mn_wire *w, struct mn_wire_stats *out);
int mn_wire_inject(struct mn_wire *w, const uint8_t *frame, uint32_t len);
int mn_wire_inject_meta(struct mn_wire *w, const uint8_t *frame, uint32_t len,
                        const struct mn_pkt_meta *meta);
int64_t mn_wire_drain(struct mn_wire *w, uint8_t *buf, uint32_t size, uint64_t *t_ns);
int64_t mn_wire_drain_meta(struct mn_wire *w, uint8_t *buf, uint32_t size, uint64_t *t_ns,
                           struct mn_pkt_meta *meta);
uint32_t mn_wire_tx_pending(const struct mn_wire *w);
uint32_t mn_wire_rx_pending(const struct mn_wire *w);

#define MN_TAP_QUEUES_MAX  ...
#define MN_WIRE_QUEUES_MAX ...

struct mn_tap_config {
    const char *name;
    int fd;
    uint32_t queues;
    const int *more_fds;
    uint32_t mtu;
    uint8_t mac[6];
    uint32_t pool_pkts;
    bool no_offload;
    uint32_t kernel_ip;
    uint32_t kernel_prefix;
    ...;
};

struct mn_tap_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_calls;
    uint64_t rx_no_pkt;
    uint64_t rx_bad_vnet;
    uint64_t rx_bad_len;
    uint64_t rx_errors;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_full;
    uint64_t tx_errors;
    int last_errno;
    ...;
};

int mn_tap_open(const struct mn_tap_config *cfg, struct mn_nic **out, char *err, size_t errlen);
void mn_tap_close(struct mn_nic *nic);
void mn_tap_get_stats(const struct mn_nic *nic, struct mn_tap_stats *out);
const char *mn_tap_name(const struct mn_nic *nic);
bool mn_tap_kernel_mac(const struct mn_nic *nic, uint8_t mac[6]);

#define MN_LINKNIC_ERR_BYTES ...

struct mn_linknic_config {
    const char *path;
    uint32_t mtu;
    uint8_t mac[6];
    uint32_t pool_pkts;
    ...;
};

struct mn_linknic_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_msgs;
    uint64_t rx_no_pkt;
    uint64_t rx_bad;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_msgs;
    uint64_t tx_full;
    uint64_t tx_no_peer;
    uint64_t tx_stalled;
    uint64_t tx_errors;
    uint64_t peers;
    uint32_t peer_mtu;
    int last_errno;
    ...;
};

int mn_linknic_open(const struct mn_linknic_config *cfg, struct mn_nic **out, char *err,
                    size_t errlen);
void mn_linknic_close(struct mn_nic *nic);
void mn_linknic_get_stats(const struct mn_nic *nic, struct mn_linknic_stats *out);
struct mn_shared_config {
    uint32_t ring_bytes;
    const struct mn_rss *rss;
    ...;
};

struct mn_shared_stats {
    uint64_t handed_frames;
    uint64_t handed_full;
    uint64_t taken_frames;
    uint64_t taken_no_pkt;
    uint64_t dispatched;
    uint64_t dispatch_dropped;
    uint64_t relayed;
    uint64_t tx_full;
    uint64_t wakes;
    ...;
};

int mn_shared_nic_open(struct mn_nic **views, uint32_t n, struct mn_nic *nic,
                       const struct mn_shared_config *cfg);
void mn_shared_nic_close(struct mn_nic *view);
int mn_shared_nic_join(struct mn_nic *view, struct mn_stack *s);
void mn_shared_nic_set_now(struct mn_nic *view, uint64_t now_ns);
void mn_shared_nic_get_stats(const struct mn_nic *view, struct mn_shared_stats *out);

int mn_vnet_check(const uint8_t *hdr, uint8_t *frame, uint32_t len, struct mn_pkt_meta *meta);

struct mn_pcapng_config {
    int fd;
    uint32_t buf_bytes;
    const char *app;
    ...;
};

struct mn_pcapng_iface {
    const char *name;
    uint32_t snaplen;
    uint8_t mac[6];
    ...;
};

struct mn_pcapng_pkt {
    uint32_t iface;
    uint32_t dir;
    uint64_t t_ns;
    uint32_t cap_len;
    uint32_t orig_len;
    const char *comment;
    uint32_t comment_len;
    ...;
};

struct mn_pcapng_stats {
    uint64_t packets;
    uint64_t dropped;
    uint64_t written_bytes;
    uint64_t write_errors;
    int last_errno;
    ...;
};

struct mn_pcapng;
int mn_pcapng_open(const struct mn_pcapng_config *cfg, struct mn_pcapng **out);
int mn_pcapng_close(struct mn_pcapng *w);
int mn_pcapng_add_iface(struct mn_pcapng *w, const struct mn_pcapng_iface *iface);
int mn_pcapng_write(struct mn_pcapng *w, const struct mn_pcapng_pkt *pkt, const uint8_t *bytes);
int mn_pcapng_flush(struct mn_pcapng *w);
void mn_pcapng_get_stats(const struct mn_pcapng *w, struct mn_pcapng_stats *out);

struct mn_capture_config {
    struct mn_pcapng *writer;
    const char *if_name;
    uint32_t snaplen;
    uint64_t epoch_ns;
    ...;
};

int mn_capture_open(struct mn_nic *inner, const struct mn_capture_config *cfg, struct mn_nic **out);
void mn_capture_close(struct mn_nic *nic);
void mn_capture_set_now(struct mn_nic *nic, uint64_t now_ns);
int mn_capture_flush(struct mn_nic *nic);

struct mn_capswitch_order {
    struct mn_nic *nic;
    const struct mn_capture_config *cfg;
    struct mn_pcapng_stats stats;
};
int mn_capswitch_open(struct mn_nic *inner, struct mn_nic **out);
void mn_capswitch_close(struct mn_nic *nic);
void mn_capswitch_set_now(struct mn_nic *nic, uint64_t now_ns);
int64_t mn_capswitch_on(void *order);
int64_t mn_capswitch_flush(void *order);
int64_t mn_capswitch_off(void *order);

struct mn_rng {
    uint64_t state;
};

enum mn_latency_kind {
    MN_LATENCY_FIXED,
    MN_LATENCY_UNIFORM,
    MN_LATENCY_NORMAL,
    MN_LATENCY_EXPONENTIAL,
    ...
};

#define MN_PPB_ONE            ...
#define MN_SHAPE_DELAY_MAX_NS ...
#define MN_SHAPE_BPS_MIN      ...
#define MN_SHAPE_BPS_MAX      ...
#define MN_SHAPE_QUEUE_PKTS   ...
#define MN_SHAPE_QUEUE_BYTES  ...
#define MN_SHAPE_MTU_MIN      ...
#define MN_SHAPE_MTU_MAX      ...

struct mn_shape {
    uint64_t latency_ns;
    uint64_t jitter_ns;
    uint32_t latency_kind;
    uint32_t keep_order;
    uint64_t bandwidth_bps;
    uint64_t queue_bytes;
    uint32_t queue_pkts;
    uint32_t mtu;
    uint32_t loss_ppb;
    uint32_t ge_bad_ppb;
    uint32_t ge_good_ppb;
    uint32_t ge_loss_bad_ppb;
    uint32_t ge_loss_good_ppb;
    uint32_t reorder_ppb;
    uint32_t duplicate_ppb;
    uint32_t corrupt_ppb;
    uint32_t blocked;
    uint64_t reorder_ns;
    uint64_t duplicate_ns;
    ...;
};

enum mn_fault {
    MN_FAULT_NONE,
    MN_FAULT_LOSS,
    MN_FAULT_BURST,
    MN_FAULT_REORDER,
    MN_FAULT_DUPLICATE,
    MN_FAULT_CORRUPT,
    MN_FAULT_JITTER,
    MN_FAULT_QUEUE,
    MN_FAULT_MTU,
    MN_FAULT_BLOCKED,
    MN_FAULT_RULE,
    MN_FAULT_DOWN,
    MN_FAULT_COUNT,
    ...
};

struct mn_shaper {
    struct mn_shape shape;
    uint64_t frames;
    uint64_t free_at_ns;
    uint64_t free_rem;
    uint64_t last_at_ns;
    uint64_t held_bytes;
    uint32_t held_pkts;
    bool bad;
    bool (*permit)(void *ctx, enum mn_fault kind, uint64_t frame_no);
    void *permit_ctx;
    uint64_t count[...];
    ...;
};

struct mn_verdict {
    uint64_t frame_no;
    uint32_t faults;
    uint32_t len;
    bool drop;
    bool held;
    bool dup;
    uint64_t at_ns;
    uint64_t dup_at_ns;
    uint64_t delay_ns;
    uint32_t bit;
    ...;
};

int mn_shaper_init(struct mn_shaper *s, uint64_t seed, const char *name,
                   const struct mn_shape *shape);
void mn_shaper_fini(struct mn_shaper *s);
const char *mn_shape_check(const struct mn_shape *shape);
void mn_shaper_set(struct mn_shaper *s, const struct mn_shape *shape);
void mn_shaper_offer(struct mn_shaper *s, uint64_t now_ns, uint32_t len, struct mn_verdict *out);
void mn_shaper_release(struct mn_shaper *s, uint64_t now_ns, struct mn_verdict *v);
void mn_shaper_forget(struct mn_shaper *s, const struct mn_verdict *v);
uint32_t mn_shaper_queued(const struct mn_shaper *s, uint64_t now_ns);
void mn_shaper_corrupt(uint8_t *frame, uint32_t len, uint32_t bit);
const char *mn_fault_name(uint32_t kind);

#define MN_FAULTNIC_TX ...
#define MN_FAULTNIC_RX ...

struct mn_faultnic_config {
    uint64_t seed;
    struct mn_shape tx;
    struct mn_shape rx;
    uint32_t pool_pkts;
    ...;
};

struct mn_faultnic_stats {
    uint64_t frames;
    uint64_t bytes;
    uint64_t passed;
    uint64_t waiting;
    uint64_t dropped_pool;
    uint64_t dropped_size;
    uint64_t refused;
    uint64_t faults[...];
    ...;
};

int mn_faultnic_open(struct mn_nic *inner, const struct mn_faultnic_config *cfg,
                     struct mn_nic **out);
void mn_faultnic_close(struct mn_nic *nic);
void mn_faultnic_sync(struct mn_nic *nic);
void mn_faultnic_set_now(struct mn_nic *nic, uint64_t now_ns);
int mn_faultnic_set(struct mn_nic *nic, uint32_t dir, const struct mn_shape *shape);
void mn_faultnic_get(struct mn_nic *nic, uint32_t dir, struct mn_shape *out);
void mn_faultnic_get_stats(const struct mn_nic *nic, uint32_t dir, struct mn_faultnic_stats *out);

/* The simulated network: simnet.h. */
struct mn_simnet;
struct mn_simnet_config {
    uint64_t seed;
    uint32_t pool_pkts;
    uint32_t frame_max;
    uint32_t record_pkts;
    uint32_t record_snap;
    uint64_t instant_max;
    uint64_t end_ns;
};
int mn_simnet_new(struct mn_simnet **out, const struct mn_simnet_config *cfg);
void mn_simnet_free(struct mn_simnet *net);
struct mn_group *mn_simnet_group(struct mn_simnet *net);
uint64_t mn_simnet_now(const struct mn_simnet *net);
int mn_simnet_host(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6]);
int mn_simnet_switch(struct mn_simnet *net, const char *name);
int mn_simnet_raw(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6]);
struct mn_nic *mn_simnet_nic(struct mn_simnet *net, uint32_t node);
int mn_simnet_bind(struct mn_simnet *net, uint32_t node, struct mn_stack *stack);
int mn_simnet_link(struct mn_simnet *net, uint32_t a, uint32_t b, const struct mn_shape *there,
                   const struct mn_shape *back);
int mn_simnet_shape(struct mn_simnet *net, uint32_t link, uint32_t dir,
                    const struct mn_shape *shape);
int mn_simnet_get_shape(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                        struct mn_shape *shape);
const char *mn_simnet_dir_name(const struct mn_simnet *net, uint32_t link, uint32_t dir);
int mn_simnet_pause(struct mn_simnet *net, uint32_t node, bool paused);
int mn_simnet_skew(struct mn_simnet *net, uint32_t node, int64_t ppb, uint64_t jump_ns);
uint64_t mn_simnet_local(const struct mn_simnet *net, uint32_t node);
uint64_t mn_simnet_when(const struct mn_simnet *net, uint32_t node, uint64_t local_ns);
int mn_simnet_down(struct mn_simnet *net, uint32_t node, bool down);

enum mn_rule_verdict {
    MN_RULE_PASS = 0,
    MN_RULE_DROP,
    MN_RULE_DUPLICATE,
    MN_RULE_REPLACED,
    MN_RULE_ABORT,
    ...
};
struct mn_rule_frame {
    uint8_t *frame;
    uint32_t len;
    uint32_t room;
    uint32_t link, dir;
    uint64_t now_ns;
    uint64_t delay_ns;
};

typedef int (*mn_rule_fn)(void *ctx, struct mn_rule_frame *frame);
extern "Python" int mn_sim_py_rule(void *ctx, struct mn_rule_frame *frame);
int mn_simnet_rule(struct mn_simnet *net, uint32_t link, uint32_t dir, mn_rule_fn fn, void *ctx);
int mn_simnet_send(struct mn_simnet *net, uint32_t node, const uint8_t *frame, uint32_t len);
int64_t mn_simnet_take(struct mn_simnet *net, uint32_t node, uint8_t *buf, uint32_t size,
                       uint64_t *t_ns);
int64_t mn_simnet_at(struct mn_simnet *net, uint64_t t_ns, void (*fn)(void *ctx, uint64_t arg),
                     void *ctx, uint64_t arg);
int mn_simnet_cancel(struct mn_simnet *net, int64_t id);
uint64_t mn_simnet_next(struct mn_simnet *net);

struct mn_simnet_idle {
    uint64_t frames;
    uint64_t calls;
    uint64_t timers;
    int32_t node;
};
bool mn_simnet_is_idle(struct mn_simnet *net, struct mn_simnet_idle *out);

struct mn_fault_id {
    uint32_t link, dir;
    uint32_t kind;
    uint32_t pad;
    uint64_t frame_no;
};
int mn_simnet_only(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n);
int mn_simnet_force(struct mn_simnet *net, const struct mn_fault_id *ids, uint64_t n);
int mn_simnet_part(struct mn_simnet *net, uint32_t from, uint32_t to, bool on);
uint64_t mn_simnet_faults(const struct mn_simnet *net, uint64_t from, struct mn_fault_id *out,
                          uint64_t n);

struct mn_sim_record {
    uint64_t t_ns;
    uint64_t seq;
    uint64_t at_ns;
    uint64_t frame_no;
    uint64_t delay_ns;
    uint32_t node;
    int32_t link;
    uint32_t dir;
    uint32_t out;
    uint32_t faults;
    uint32_t bit;
    uint32_t rule;
    uint32_t len;
    uint32_t kept;
    ...;
};
uint32_t mn_simnet_fate(const struct mn_sim_record *r, char *buf, uint32_t size);
bool mn_simnet_lost(const struct mn_sim_record *r);
uint64_t mn_simnet_recorded(const struct mn_simnet *net);
uint64_t mn_simnet_oldest(const struct mn_simnet *net);
int mn_simnet_record(const struct mn_simnet *net, uint64_t seq, struct mn_sim_record *out,
                     uint8_t *buf, uint32_t size);
int mn_simnet_capture(struct mn_simnet *net, int fd);
int mn_simnet_capture_end(struct mn_simnet *net);
int mn_simnet_dump(struct mn_simnet *net, int fd);

struct mn_check;

int mn_simnet_checks(struct mn_simnet *net, bool on);

int mn_simnet_check_all(struct mn_simnet *net);

struct mn_check *mn_simnet_check(struct mn_simnet *net);
const char *mn_check_text(const struct mn_check *c);

struct mn_check *mn_check_new(uint32_t flows_max);
void mn_check_free(struct mn_check *c);
int mn_check_frame(struct mn_check *c, uint32_t node, const uint8_t *frame, uint32_t len,
                   uint64_t now_ns);
void mn_check_arrived(struct mn_check *c, uint32_t node, const uint8_t *frame, uint32_t len);

struct mn_engine;

int mn_check_engine(struct mn_engine *e, char *text, size_t size);
int mn_check_pass(struct mn_check *c, uint32_t node, struct mn_engine *e, uint64_t now_ns);
int mn_check_now(struct mn_check *c, uint32_t node, struct mn_engine *e, uint64_t now_ns);
void mn_check_forget(struct mn_check *c, uint32_t node);

struct mn_check_conn {
    uint32_t laddr, raddr;
    uint16_t lport, rport;
    uint32_t udp;
};
void mn_check_foreign(struct mn_check *c, const uint8_t *frame, uint32_t len);
int mn_check_given(struct mn_check *c, const struct mn_check_conn *conn, uint64_t id,
                   const void *bytes, uint64_t len, bool message);
int mn_check_taken(struct mn_check *c, const struct mn_check_conn *conn, uint64_t id,
                   const void *bytes, uint64_t len, bool message, uint64_t now_ns);

struct mn_check_stats {
    uint64_t frames;
    uint64_t compared;
    uint64_t looks;
    uint64_t walks;
    uint64_t delivered;
    uint64_t unfollowed;
    uint64_t flows_live;
    uint64_t mem_bytes;
};
void mn_check_get_stats(const struct mn_check *c, struct mn_check_stats *out);

struct mn_simnet_stats {
    uint64_t events;
    uint64_t polls;
    uint64_t frames;
    uint64_t delivered;
    uint64_t dropped;
    uint64_t pool_live;
    uint64_t queued;
};
void mn_simnet_get_stats(const struct mn_simnet *net, struct mn_simnet_stats *out);
struct mn_link_stats {
    uint64_t frames, bytes, delivered;
    uint64_t faults[...];
};
int mn_simnet_link_stats(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                         struct mn_link_stats *out);
const char *mn_simnet_error(const struct mn_simnet *net);

#define MN_PCAPNIC_FRAME_MAX ...

struct mn_pcapnic_config {
    uint32_t mtu;
    uint8_t mac[6];
    struct mn_pcapng *writer;
    uint32_t iface;
    uint64_t epoch_ns;
    ...;
};

struct mn_pcapnic_stats {
    uint64_t rx_frames;
    uint64_t rx_left;
    uint64_t arp_answers;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    ...;
};

int mn_pcapnic_open(const struct mn_pcapnic_config *cfg, struct mn_nic **out);
void mn_pcapnic_close(struct mn_nic *nic);
int mn_pcapnic_add(struct mn_nic *nic, uint64_t t_ns, const uint8_t *frame, uint32_t len);
int mn_pcapnic_neighbor(struct mn_nic *nic, uint32_t ip, const uint8_t mac[6]);
void mn_pcapnic_set_mac(struct mn_nic *nic, const uint8_t mac[6]);
void mn_pcapnic_set_epoch(struct mn_nic *nic, uint64_t epoch_ns);
void mn_pcapnic_set_now(struct mn_nic *nic, uint64_t now_ns);
void mn_pcapnic_get_stats(const struct mn_nic *nic, struct mn_pcapnic_stats *out);
