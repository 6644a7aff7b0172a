/* SPDX-License-Identifier: MIT */
#define MN_HIST_BUCKETS     ...
#define MN_MSG_HEADER_BYTES ...
#define MN_MSG_MAX_BYTES    ...
#define MN_MSG_WINDOW_MAX   ...
#define MN_MSG_MATCH        ...

struct mn_hist {
    uint64_t count;
    uint64_t sum_ns;
    uint64_t min_ns;
    uint64_t max_ns;
    uint64_t over_top;
    uint64_t buckets[...];
};
void mn_hist_reset(struct mn_hist *hist);
void mn_hist_record(struct mn_hist *hist, uint64_t value_ns);
void mn_hist_merge(struct mn_hist *into, const struct mn_hist *from);
uint64_t mn_hist_quantile_ns(const struct mn_hist *hist, uint32_t quantile_ppm);
double mn_hist_mean_ns(const struct mn_hist *hist);
uint32_t mn_hist_bucket(uint64_t value_ns);
uint64_t mn_hist_bucket_end_ns(uint32_t bucket);

struct mn_msg_stats {
    uint64_t tx_msgs;
    uint64_t tx_bytes;
    uint64_t rx_msgs;
    uint64_t rx_bytes;
    uint64_t payload_faults;
    struct mn_hist rtt;
};
void mn_msg_stats_reset(struct mn_msg_stats *stats);
void mn_msg_stats_move(struct mn_msg_stats *total, struct mn_msg_stats *interval);
void mn_msg_fill(uint8_t *data, uint32_t length, uint32_t offset);
uint32_t mn_msg_check(const uint8_t *data, uint32_t length, uint32_t offset);

enum mn_msg_fault_kind {
    MN_MSG_FAULT_NONE,
    MN_MSG_FAULT_LENGTH,
    MN_MSG_FAULT_SLOT,
    MN_MSG_FAULT_PAYLOAD,
    MN_MSG_FAULT_TORN,
    MN_MSG_FAULT_CLOSED,
    MN_MSG_FAULT_SYSTEM,
    MN_MSG_FAULT_ACCEPT,
    MN_MSG_FAULT_OWED,
    MN_MSG_FAULT_FLOW,
    ...
};
struct mn_msg_fault {
    uint32_t kind;
    uint32_t length;
    uint64_t slot;
    uint32_t offset;
    uint8_t expected;
    uint8_t got;
    uint16_t peer_port;
    uint32_t peer_ip_be;
    int32_t error;
};

struct mn_frame_tx {
    uint32_t count;
    uint32_t head_sent;
    ...;
};
int mn_frame_tx_open(struct mn_frame_tx *tx, uint32_t capacity, uint32_t payload_bytes);
void mn_frame_tx_close(struct mn_frame_tx *tx);
void mn_frame_tx_push(struct mn_frame_tx *tx, uint64_t slot);
uint32_t mn_frame_tx_copy(const struct mn_frame_tx *tx, uint8_t *out, uint32_t room);
uint32_t mn_frame_tx_consume(struct mn_frame_tx *tx, uint32_t bytes);
struct mn_frame_rx {
    uint64_t slot;
    uint32_t length;
    uint32_t seen;
    uint32_t wrong_at;
    uint8_t wrong_got;
    bool verify;
    ...;
};
int mn_frame_rx_next(struct mn_frame_rx *rx, const uint8_t **at, const uint8_t *end);
uint64_t mn_frame_rx_limit(const struct mn_frame_rx *rx, uint32_t messages);

struct mn_tcp_config {
    int32_t fd;
    uint32_t msg_size;
    uint32_t window;
    uint64_t msgs_max;
    uint64_t spin_ns;
    bool verify;
};
struct mn_tcp_client;
struct mn_tcp_client *mn_tcp_client_new(const struct mn_tcp_config *config,
                                        struct mn_msg_stats *stats);
void mn_tcp_client_free(struct mn_tcp_client *client);
int mn_tcp_client_run(struct mn_tcp_client *client, uint64_t until_ns, const volatile int *stop);
void mn_tcp_client_drain(struct mn_tcp_client *client);
uint32_t mn_tcp_client_in_flight(const struct mn_tcp_client *client);
struct mn_msg_fault mn_tcp_client_fault(const struct mn_tcp_client *client);
struct mn_msg_fault mn_tcp_client_payload_fault(const struct mn_tcp_client *client);
struct mn_tcp_server;
struct mn_tcp_server *mn_tcp_server_new(const struct mn_tcp_config *config,
                                        struct mn_msg_stats *stats);
void mn_tcp_server_free(struct mn_tcp_server *server);
int mn_tcp_server_run(struct mn_tcp_server *server, uint64_t until_ns, const volatile int *stop);
bool mn_tcp_server_fault(struct mn_tcp_server *server, struct mn_msg_fault *fault);
uint64_t mn_tcp_server_untold(struct mn_tcp_server *server);
uint64_t mn_tcp_server_faults(const struct mn_tcp_server *server);
uint32_t mn_tcp_server_open_conns(const struct mn_tcp_server *server);

#define MN_GEN_SERVER_OWED_MAX ...
struct mn_gen_config {
    struct mn_chan *chan;
    struct mn_stack *stack;
    uint64_t msgs_max;
    uint64_t rate_per_s;
    uint64_t spin_ns;
    uint32_t msg_size;
    uint32_t window;
    uint32_t flow;
    bool verify;
};
struct mn_gen_client;
struct mn_gen_client *mn_gen_client_new(const struct mn_gen_config *config,
                                        struct mn_msg_stats *stats);
void mn_gen_client_free(struct mn_gen_client *client);
int mn_gen_client_run(struct mn_gen_client *client, uint64_t until_ns, const volatile int *stop);
void mn_gen_client_drain(struct mn_gen_client *client);
uint32_t mn_gen_client_in_flight(const struct mn_gen_client *client);
struct mn_msg_fault mn_gen_client_fault(const struct mn_gen_client *client);
struct mn_msg_fault mn_gen_client_payload_fault(const struct mn_gen_client *client);
struct mn_gen_server;
struct mn_gen_server *mn_gen_server_new(const struct mn_gen_config *config,
                                        struct mn_msg_stats *stats);
void mn_gen_server_free(struct mn_gen_server *server);
int mn_gen_server_run(struct mn_gen_server *server, uint64_t until_ns, const volatile int *stop);
bool mn_gen_server_fault(struct mn_gen_server *server, struct mn_msg_fault *fault);
uint64_t mn_gen_server_untold(struct mn_gen_server *server);
uint64_t mn_gen_server_faults(const struct mn_gen_server *server);
uint32_t mn_gen_server_open_conns(const struct mn_gen_server *server);

#define MN_PROBE_MARK_BYTES   ...
#define MN_PROBE_SLOTS        ...
#define MN_PROBE_WATCHERS_MAX ...

enum mn_probe_mode {
    MN_PROBE_ICMP = 0,
    MN_PROBE_UDP = 1,
    MN_PROBE_BOUNCE = 2,
};

struct mn_probe_config {
    struct mn_nic *nic;
    void (*watch[...])(void *ctx, uint64_t now_ns);
    void *watch_ctx[...];
    uint32_t mode;
    uint32_t ip;
    uint32_t target_ip;
    uint32_t next_hop_ip;
    uint8_t next_hop_mac[6];
    uint16_t local_port;
    uint16_t remote_port;
    uint16_t echo_id;
    uint64_t mark;
    uint32_t frame_len;
    uint32_t burst;
    uint64_t period_ns;
    uint64_t period_packets;
    uint32_t window;
    bool from_due;
    bool log;
    uint64_t count;
    uint64_t timeout_ns;
    uint64_t arp_timeout_ns;
    uint64_t spin_ns;
};

struct mn_probe_counts {
    uint64_t answered;
    uint64_t lost;
    uint64_t late;
    uint64_t duplicates;
    uint64_t unreachable;
    uint64_t bounced;
    uint64_t arp_requests;
    uint64_t arp_replies;
    uint64_t echo_replies;
    uint64_t other;
    uint64_t bad;
    uint64_t refused;
    uint64_t cost_tx_ticks, cost_tx_bursts, cost_tx_packets;
    uint64_t cost_rx_ticks, cost_rx_bursts, cost_rx_packets;
    uint64_t cost_run_ticks, cost_run_ns;
};

enum mn_probe_event_kind {
    MN_PROBE_REPLY = 0,
    MN_PROBE_DUPLICATE = 1,
    MN_PROBE_LOST = 2,
    MN_PROBE_LATE = 3,
    MN_PROBE_ERROR = 4,
};

struct mn_probe_event {
    uint64_t seq;
    uint64_t rtt_ns;
    uint64_t at_ns;
    uint32_t from_ip;
    uint32_t len;
    uint8_t kind;
    uint8_t ttl;
    uint8_t icmp_type;
    uint8_t icmp_code;
};

struct mn_probe;
struct mn_probe *mn_probe_new(const struct mn_probe_config *config, struct mn_msg_stats *stats);
void mn_probe_free(struct mn_probe *probe);
int mn_probe_run(struct mn_probe *probe, uint64_t until_ns, const volatile int *stop);
void mn_probe_drain(struct mn_probe *probe);
uint32_t mn_probe_in_flight(const struct mn_probe *probe);
struct mn_probe_counts mn_probe_get_counts(const struct mn_probe *probe);
bool mn_probe_next_hop(const struct mn_probe *probe, uint8_t mac[6]);
uint32_t mn_probe_log(struct mn_probe *probe, struct mn_probe_event *events, uint32_t n);
