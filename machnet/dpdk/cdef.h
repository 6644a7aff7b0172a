/* SPDX-License-Identifier: MIT */
struct mn_nic;

#define MN_DPDK_ERR_BYTES      ...
#define MN_DPDK_ARGS_MAX       ...
#define MN_DPDK_WAKE_TIMER     ...
#define MN_DPDK_WAKE_FD        ...
#define MN_DPDK_WAKE_INTERRUPT ...

struct mn_dpdk_config {
    uint16_t port;
    uint16_t queues;
    uint16_t rx_desc;
    uint16_t tx_desc;
    uint32_t mtu;
    uint32_t pool_mbufs;
    uint32_t nap_max_us;
    uint32_t frame_room;
    uint8_t mac[6];
    bool no_offload;
    ...;
};

struct mn_dpdk_stats {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_bursts;
    uint64_t rx_bad;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_bursts;
    uint64_t tx_full;
    uint64_t tx_refused;
    uint64_t tx_down;
    uint64_t no_mbuf;
    uint64_t unplugged;
    uint64_t replugged;
    uint64_t ipackets, opackets, ibytes, obytes;
    uint64_t imissed;
    uint64_t ierrors, oerrors;
    uint64_t rx_nombuf;
    uint64_t mbufs;
    uint64_t mbufs_free;
    ...;
};

struct mn_dpdk_info {
    char driver[64];
    char device[64];
    uint16_t port;
    uint16_t queues;
    uint16_t queues_max;
    uint16_t rx_desc, tx_desc;
    int socket;
    uint32_t link_mbit;
    bool link_up;
    bool present;
    bool rss;
    bool rss_known;
    bool promiscuous;
    int wake;
    uint32_t frame_room;
    uint32_t if_index;
    ...;
};

int mn_dpdk_init(int argc, char *const *argv, uint32_t log_level, char *err, size_t err_bytes);
void mn_dpdk_fini(void);
bool mn_dpdk_forked(void);
const char *mn_dpdk_version(void);
uint32_t mn_dpdk_log_take(char *buf, uint32_t size, uint32_t *level);
int mn_dpdk_probe(const char *devargs, uint16_t *ports, uint32_t n, char *err, size_t err_bytes);
int mn_dpdk_unprobe(uint16_t port);
int mn_dpdk_port_mac(uint16_t port, uint8_t mac[6]);
int mn_dpdk_open(const struct mn_dpdk_config *cfg, struct mn_nic **out, char *err,
                 size_t err_bytes);
void mn_dpdk_close(struct mn_nic *nic);
const char *mn_dpdk_missing(const struct mn_nic *nic, uint32_t i);
void mn_dpdk_get_stats(struct mn_nic *nic, struct mn_dpdk_stats *out);
void mn_dpdk_get_info(struct mn_nic *nic, struct mn_dpdk_info *out);
void mn_dpdk_look(void);
int mn_dpdk_ring_pair(uint16_t queues, uint32_t slots, uint16_t ports[2], char *err,
                      size_t err_bytes);
