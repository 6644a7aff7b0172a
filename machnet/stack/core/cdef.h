/* SPDX-License-Identifier: MIT */
/* What Python sees of the core. */

/* The channel: channel.h. Atomic members are plain integers here. */
#define MN_CHAN_MAGIC          ...
#define MN_CHAN_VERSION        ...
#define MN_BUF_NONE            ...
#define MN_FLOW_NONE           ...
#define MN_LINGER_DEFAULT      ...
#define MN_PROTO_UDP           ...
#define MN_PROTO_TCP           ...
#define MN_PROTO_STREAM        ...
#define MN_DESC_FIRST          ...
#define MN_DESC_LAST           ...
#define MN_DESC_URG            ...
#define MN_DESC_FIN            ...
#define MN_DESC_CLOSE          ...
#define MN_DESC_END            ...
#define MN_DESC_MORE           ...
#define MN_CTL_LISTEN          ...
#define MN_CTL_UNLISTEN        ...
#define MN_CTL_CONNECT         ...
#define MN_CTL_ACCEPT          ...
#define MN_CTL_RELEASE         ...
#define MN_CTL_SETOPT          ...
#define MN_CTL_CANCEL          ...
#define MN_CTL_GETOPT          ...
#define MN_OPT_NODELAY         ...
#define MN_OPT_KEEPALIVE       ...
#define MN_OPT_KEEPIDLE_S      ...
#define MN_OPT_KEEPINTVL_S     ...
#define MN_OPT_KEEPCNT         ...
#define MN_OPT_USER_TIMEOUT_MS ...
#define MN_OPT_RCVBUF          ...
#define MN_OPT_DSCP            ...
#define MN_OPT_TTL             ...
#define MN_OPT_STATE           ...
#define MN_OPT_MSS             ...
#define MN_OPT_SNDQ            ...
#define MN_OPT_SRTT_US         ...
#define MN_OPT_CWND            ...
#define MN_OPT_SSTHRESH        ...
#define MN_OPT_RETRANS         ...
#define MN_OPT_QUICKACK        ...
#define MN_OPT_ISN             ...
#define MN_OPT_RTO_US          ...
#define MN_OPT_MAXSEG          ...
#define MN_OPT_LINGER_MS       ...
#define MN_EVT_RESULT          ...
#define MN_EVT_ACCEPT          ...
#define MN_EVT_SOFT            ...
#define MN_EVT_URGENT          ...
#define MN_APP_MORE            ...
#define MN_APP_URG             ...
#define MN_APP_PEEK            ...
#define MN_READY_MSG           ...
#define MN_READY_STREAM        ...
#define MN_READY_ACCEPT        ...
#define MN_READY_RESULT        ...
#define MN_READY_SPACE         ...
#define MN_READY_DEAD          ...

struct mn_desc {
    uint32_t buf;
    uint32_t len;
    uint32_t flow;
    uint16_t flags;
    uint16_t zero;
};

struct mn_ctl_cmd {
    uint32_t op;
    uint32_t token;
    uint32_t flow;
    uint32_t proto;
    uint32_t local_ip;
    uint32_t remote_ip;
    uint16_t local_port;
    uint16_t remote_port;
    uint32_t arg;
    uint32_t opt;
    uint32_t zero;
    uint64_t value;
    uint8_t pad[16];
};

struct mn_ctl_evt {
    uint32_t kind;
    uint32_t token;
    uint32_t flow;
    int32_t status;
    uint32_t proto;
    uint32_t local_ip;
    uint32_t remote_ip;
    uint16_t local_port;
    uint16_t remote_port;
    uint32_t listener;
    uint32_t zero;
    uint64_t value;
    uint8_t pad[16];
};

struct mn_ring_idx {
    uint32_t tail;
    uint32_t head;
    ...;
};

struct mn_lane_shared {
    struct mn_ring_idx submit, completed, deliver, released, ctl_submit, ctl_complete;
    uint32_t app_sleeps;
    uint32_t engine_sleeps;
    uint32_t closed;
    uint32_t ip;
    ...;
};

struct mn_chan_geometry {
    uint32_t n_lanes;
    uint32_t buf_bytes;
    uint32_t tx_bufs;
    uint32_t rx_bufs;
    uint32_t flows_max;
    uint32_t ctl_slots;
};

struct mn_chan_hdr {
    uint64_t magic;
    uint32_t version;
    uint32_t hdr_bytes;
    uint64_t total_bytes;
    uint64_t lane_stride;
    struct mn_chan_geometry geo;
    ...;
};

struct mn_lane_layout {
    uint32_t msg_slots_tx;
    uint32_t msg_slots_rx;
    uint32_t ret_slots_tx;
    uint32_t ret_slots_rx;
    uint64_t submit_off, completed_off, deliver_off, released_off, ctl_submit_off, ctl_complete_off;
    uint64_t tx_pool_off, rx_pool_off;
    uint64_t stride;
};

int mn_chan_layout(const struct mn_chan_geometry *geo, struct mn_lane_layout *out);
uint64_t mn_chan_bytes(const struct mn_chan_geometry *geo);
int mn_chan_format(void *region, uint64_t region_bytes, const struct mn_chan_geometry *geo);
int mn_chan_check(const void *region, uint64_t region_bytes, struct mn_chan_geometry *geo_out);
uint8_t *mn_chan_lane(void *region, const struct mn_lane_layout *lay, uint32_t i);

/* The application's side: chan_app.h. */
struct mn_app;
typedef void (*mn_app_kick_fn)(void *ctx);

struct mn_app_flow_info {
    uint32_t flow;
    uint32_t proto;
    uint32_t local_ip, remote_ip;
    uint16_t local_port, remote_port;
    uint32_t listener;
    int32_t error;
    uint8_t live;
    uint8_t eof;
    uint8_t ended;
    uint8_t accepted;
    int32_t soft_error;
    uint64_t urgent_off;
    uint64_t read_off;
};

struct mn_app_msg {
    uint32_t flow;
    uint32_t len;
    int32_t status;
};

struct mn_app_iov {
    const void *base;
    uint64_t len;
};

struct mn_app_stats {
    uint32_t tx_free;
    uint32_t tx_in_flight;
    uint32_t tx_touched;
    uint32_t rx_held;
    uint32_t rx_unreleased;
    uint32_t msgs;
    uint32_t accepts;
    uint32_t results;
    uint32_t tokens;
};

uint64_t mn_app_bytes(const struct mn_chan_geometry *geo);
int mn_app_open(struct mn_app **out, void *mem, uint64_t mem_bytes, void *region,
                uint64_t region_bytes, mn_app_kick_fn kick, void *kick_ctx);
int64_t mn_app_listen(struct mn_app *a, uint32_t ip, uint16_t port, uint32_t proto,
                      uint32_t backlog);
int64_t mn_app_unlisten(struct mn_app *a, uint32_t listener);
int64_t mn_app_connect(struct mn_app *a, uint32_t local_ip, uint16_t local_port, uint32_t remote_ip,
                       uint16_t remote_port, uint32_t proto, uint32_t timeout_ms);
int64_t mn_app_setopt(struct mn_app *a, uint32_t flow, uint32_t opt, uint64_t value);
int64_t mn_app_getopt(struct mn_app *a, uint32_t flow, uint32_t opt);
int mn_app_result(struct mn_app *a, int64_t token, struct mn_ctl_evt *evt);
int mn_app_forget(struct mn_app *a, int64_t token);
int mn_app_poll(struct mn_app *a);
int mn_app_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len);
int mn_app_sendv(struct mn_app *a, uint32_t flow, const struct mn_app_iov *iov, uint32_t n);
int mn_app_send_nopub(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len);
void mn_app_flush(struct mn_app *a);
int mn_app_peek(struct mn_app *a, struct mn_app_msg *msg);
int64_t mn_app_take(struct mn_app *a, void *buf, uint64_t size);
void mn_app_skip(struct mn_app *a);
uint32_t mn_app_pieces(struct mn_app *a, struct mn_app_iov *iov, uint32_t n);
int64_t mn_app_stream_send(struct mn_app *a, uint32_t flow, const void *buf, uint64_t len,
                           uint32_t flags);
int64_t mn_app_stream_recv(struct mn_app *a, uint32_t flow, void *buf, uint64_t size,
                           uint32_t flags);
int mn_app_shutdown_write(struct mn_app *a, uint32_t flow);
uint32_t mn_app_accept(struct mn_app *a, uint32_t listener);
int mn_app_close_flow(struct mn_app *a, uint32_t flow, uint32_t linger_ms);
int mn_app_flow_info(struct mn_app *a, uint32_t flow, struct mn_app_flow_info *out);
uint32_t mn_app_flows(struct mn_app *a, uint32_t *ids, uint32_t n);
uint32_t mn_app_ready(struct mn_app *a);
uint32_t mn_app_flow_ready(struct mn_app *a, uint32_t flow);
bool mn_app_prepare_sleep(struct mn_app *a);
void mn_app_cancel_sleep(struct mn_app *a);
uint64_t mn_app_send_room(struct mn_app *a, uint32_t flow);
int mn_app_dead(const struct mn_app *a);
void mn_app_stats(const struct mn_app *a, struct mn_app_stats *out);

/* engine */
#define MN_NEVER ...

struct mn_config {
    uint32_t ip;
    uint32_t prefix;
    uint32_t gateway;
    uint8_t secret[16];
    uint32_t flows_max;
    uint32_t listeners_max;
    uint32_t neighbors_max;
    uint32_t lanes_max;
    uint32_t ooo_blocks_max;
    uint32_t ooo_ranges_max;
    uint32_t sack_ranges_max;
    uint32_t loop_slots;
    uint32_t poll_burst;
    uint32_t poll_descs;
    uint32_t mss_min_bytes;
    uint32_t rcv_buf_bytes;
    uint32_t initial_window;
    uint32_t rto_initial_us, rto_min_us, rto_max_us;
    uint32_t delack_us;
    uint32_t msl_ms;
    uint32_t fin_wait2_ms;
    uint32_t r1_retries;
    uint32_t user_timeout_ms;
    uint32_t syn_timeout_ms;
    uint32_t syn_backlog_max;
    uint32_t app_exit_linger_ms;
    uint32_t eof_linger_ms;
    uint32_t keepalive_idle_s, keepalive_interval_s, keepalive_count;
    uint32_t large_progress_ms;
    uint32_t arp_reachable_ms, arp_retry_ms, arp_retries, arp_queue_pkts;
    uint32_t rst_per_s, icmp_per_s, challenge_per_s;
    uint32_t mnp_flows_max;
    uint32_t mnp_rto_initial_us, mnp_rto_min_us, mnp_rto_max_us;
    uint32_t mnp_delack_us;
    uint32_t mnp_window_packets;
    uint32_t mnp_user_timeout_ms;
    uint32_t mnp_msl_ms;
    bool mnp_extended;
    uint8_t ttl;
    uint8_t dscp;
    bool timestamps, sack, wscale;
    bool nagle_framed, nagle_stream;
    bool isn_option;
    ...;
};

struct mn_stats {
    ...;
};

struct mn_usage {
    uint32_t tcbs, half_open, time_wait, listeners, neighbors, ooo_blocks, ooo_ranges, sack_ranges,
        lanes, loop_frames, timers, mnp_flows;
    ...;
};

struct mn_sock_info {
    uint32_t local_ip, remote_ip;
    uint16_t local_port, remote_port;
    uint8_t state;
    uint8_t proto;
    uint16_t mss;
    uint32_t lane;
    uint32_t flow;
    uint32_t snd_una, snd_nxt, rcv_nxt, snd_wnd, rcv_wnd, cwnd, ssthresh, sndq_bytes, rcvq_bytes;
    uint32_t srtt_us, rttvar_us, rto_us;
    uint32_t retransmits, backoff;
    uint64_t timer_ns;
    uint8_t timer_kind;
    ...;
};

enum mn_tcp_state {
    MN_TCP_CLOSED,
    MN_TCP_LISTEN,
    MN_TCP_SYN_SENT,
    MN_TCP_SYN_RECEIVED,
    MN_TCP_ESTABLISHED,
    MN_TCP_FIN_WAIT_1,
    MN_TCP_FIN_WAIT_2,
    MN_TCP_CLOSE_WAIT,
    MN_TCP_CLOSING,
    MN_TCP_LAST_ACK,
    MN_TCP_TIME_WAIT,
    ...
};

/* How NICs spread frames over queues: rss.h. */
#define MN_RSS_KEY_MIN_BYTES ...
#define MN_RSS_KEY_MAX_BYTES ...
#define MN_RSS_TABLE_MAX     ...
#define MN_RSS_TCP_PORTS     ...
#define MN_RSS_UDP_PORTS     ...
#define MN_ENGINES_MAX       ...

struct mn_rss {
    uint8_t key[...];
    uint32_t key_bytes;
    uint32_t ports;
    uint32_t table_size;
    uint16_t table[...];
    ...;
};

int mn_rss_init(struct mn_rss *r, const uint8_t *key, uint32_t key_bytes, const uint16_t *table,
                uint32_t table_size, uint32_t ports);
int mn_rss_init_default(struct mn_rss *r, uint32_t queues);
uint32_t mn_rss_hash_ports(const struct mn_rss *r, uint32_t src, uint32_t dst, uint16_t sport,
                           uint16_t dport);
uint32_t mn_rss_hash_addrs(const struct mn_rss *r, uint32_t src, uint32_t dst);
bool mn_rss_symmetric(const struct mn_rss *r);
uint32_t mn_rss_frame_queue(const struct mn_rss *r, const uint8_t *p, uint32_t len);
uint32_t mn_rss_least_share(const struct mn_rss *r, uint32_t queues);
