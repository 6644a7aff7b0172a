/* SPDX-License-Identifier: MIT */
#include "machnet/cli/probe_int.h"

#include <stdlib.h>

#include "machnet/stack/core/wire/eth.h"
#include "machnet/stack/core/wire/icmp.h"
#include "machnet/stack/core/wire/ipv4.h"
#include "machnet/stack/core/wire/udp.h"
#include "machnet/stack/host/os.h"

#define ARP_RETRY_NS (200 * UINT64_C(1000000))
/* A sleeper that wakes this much before a packet is due is in time. */
#define EARLY_NS (100 * UINT64_C(1000))
/* The NIC has no descriptor: it is looked at after naps. */
#define NAP_NS (1000 * UINT64_C(1000))

static uint32_t header_len(const struct mn_probe_config *cfg)
{
    return MN_ETH_HLEN + MN_IPV4_HLEN + (cfg->mode == MN_PROBE_ICMP ? MN_ICMP_HLEN : MN_UDP_HLEN);
}

static bool config_ok(const struct mn_probe_config *cfg)
{
    uint32_t least = header_len(cfg) + (cfg->mode == MN_PROBE_UDP ? MN_PROBE_MARK_BYTES : 0);

    if (cfg->mode > MN_PROBE_BOUNCE || cfg->burst == 0 || cfg->burst > PROBE_BURST) {
        return false;
    }
    if (cfg->mode == MN_PROBE_BOUNCE) {
        return true;
    }
    return cfg->frame_len >= least && cfg->frame_len <= cfg->nic->caps.mtu + MN_ETH_HLEN &&
           cfg->window <= MN_PROBE_SLOTS && (cfg->period_ns == 0 || cfg->period_packets > 0);
}

struct mn_probe *mn_probe_new(const struct mn_probe_config *config, struct mn_msg_stats *stats)
{
    static const uint8_t zero[6];
    struct mn_probe *p = config_ok(config) ? calloc(1, sizeof(*p)) : NULL;

    if (p == NULL) {
        return NULL;
    }
    p->cfg = *config;
    p->stats = stats;
    if (config->mode != MN_PROBE_BOUNCE) {
        p->payload_len = config->frame_len - header_len(config);
    }
    p->payload = malloc((size_t)p->payload_len + 1);
    if (p->payload == NULL) {
        free(p);
        return NULL;
    }
    mn_msg_fill(p->payload, p->payload_len, 0);
    for (uint32_t i = 0; i < MN_PROBE_SLOTS; i++) {
        p->slots[i].seq = UINT64_MAX;
    }
    memcpy(p->next_hop_mac, config->next_hop_mac, 6);
    p->resolved =
        config->mode == MN_PROBE_BOUNCE || memcmp(p->next_hop_mac, zero, sizeof(zero)) != 0;
    return p;
}

void mn_probe_free(struct mn_probe *p)
{
    if (p != NULL) {
        free(p->payload);
        free(p);
    }
}

static uint32_t events_fill(const struct mn_probe *p)
{
    return p->events_tail - p->events_head;
}

void mn_probe_note(struct mn_probe *p, const struct mn_probe_event *event)
{
    if (p->cfg.log && events_fill(p) < PROBE_EVENTS) {
        p->events[p->events_tail++ % PROBE_EVENTS] = *event;
    }
}

uint32_t mn_probe_log(struct mn_probe *p, struct mn_probe_event *events, uint32_t n)
{
    uint32_t got = 0;

    for (; got < n && events_fill(p) > 0; got++) {
        events[got] = p->events[p->events_head++ % PROBE_EVENTS];
    }
    return got;
}

void mn_probe_answered(struct mn_probe *p, const struct mn_probe_event *reply, bool right)
{
    struct probe_slot *slot = mn_probe_slot(p, reply->seq);
    struct mn_probe_event event = *reply;

    if (reply->seq >= p->next_seq) {
        p->counts.other++;
        return;
    }
    if (slot->seq != reply->seq) {
        /* Later ones have taken its place. */
        p->counts.late++;
        return;
    }
    event.rtt_ns = reply->at_ns - mn_min_u64(slot->sent_ns, reply->at_ns);
    if (slot->state == PROBE_WAITING) {
        slot->state = PROBE_ANSWERED;
        p->in_flight--;
        p->counts.answered++;
        p->stats->rx_msgs++;
        p->stats->rx_bytes += p->cfg.frame_len;
        mn_hist_record(&p->stats->rtt, event.rtt_ns);
    } else if (slot->state == PROBE_GONE) {
        slot->state = PROBE_ANSWERED;
        p->counts.late++;
        event.kind = MN_PROBE_LATE;
    } else {
        p->counts.duplicates++;
        event.kind = MN_PROBE_DUPLICATE;
    }
    p->stats->payload_faults += !right;
    mn_probe_note(p, &event);
}

static void lose(struct mn_probe *p, struct probe_slot *slot, uint64_t now_ns)
{
    slot->state = PROBE_GONE;
    p->in_flight--;
    p->counts.lost++;
    mn_probe_note(
        p, &(struct mn_probe_event){.kind = MN_PROBE_LOST, .seq = slot->seq, .at_ns = now_ns});
}

/* Packets whose time is over. */
static void expire(struct mn_probe *p, uint64_t now_ns)
{
    while (p->oldest < p->next_seq && events_fill(p) <= PROBE_EVENTS / 2) {
        struct probe_slot *slot = mn_probe_slot(p, p->oldest);

        if (slot->seq == p->oldest && slot->state == PROBE_WAITING) {
            if (now_ns - mn_min_u64(slot->sent_ns, now_ns) < p->cfg.timeout_ns) {
                return;
            }
            lose(p, slot, now_ns);
        }
        p->oldest++;
    }
}

/* When packet `seq` is due; now_ns or less: at once. */
static uint64_t due_ns(const struct mn_probe *p, uint64_t seq)
{
    uint64_t n = p->cfg.period_packets, period = p->cfg.period_ns;

    return period == 0 ? 0 : p->start_ns + seq / n * period + seq % n * period / n;
}

static bool all_sent(const struct mn_probe *p)
{
    return p->draining || p->cfg.mode == MN_PROBE_BOUNCE ||
           (p->cfg.count != 0 && p->next_seq == p->cfg.count);
}

static bool may_send(const struct mn_probe *p, uint64_t seq, uint64_t now_ns)
{
    return (p->cfg.count == 0 || seq < p->cfg.count) && due_ns(p, seq) <= now_ns &&
           (p->cfg.window == 0 || p->in_flight + (seq - p->next_seq) < p->cfg.window);
}

static void sent(struct mn_probe *p, uint64_t now_ns)
{
    struct probe_slot *slot = mn_probe_slot(p, p->next_seq);

    if (slot->state == PROBE_WAITING) {
        lose(p, slot, now_ns);
    }
    *slot = (struct probe_slot){
        .seq = p->next_seq,
        .sent_ns = p->cfg.from_due && p->cfg.period_ns != 0 ? due_ns(p, p->next_seq) : now_ns,
        .state = PROBE_WAITING,
    };
    p->in_flight++;
    p->next_seq++;
    p->stats->tx_msgs++;
    p->stats->tx_bytes += p->cfg.frame_len;
}

/* Sends a burst of what is due: how many packets that were. */
static uint32_t send_due(struct mn_probe *p, uint64_t now_ns)
{
    struct mn_nic *nic = p->cfg.nic;
    struct mn_pkt *pkts[PROBE_BURST];
    uint32_t n = 0, taken;
    uint64_t ticks;

    if (all_sent(p)) {
        return 0;
    }
    if (!p->started) {
        p->started = true;
        p->start_ns = now_ns;
    }
    ticks = probe_ticks();
    while (n < p->cfg.burst && may_send(p, p->next_seq + n, now_ns)) {
        pkts[n] = mn_probe_build(p, p->next_seq + n);
        if (pkts[n] == NULL) {
            break;
        }
        n++;
    }
    if (n == 0) {
        return 0;
    }
    now_ns = mn_msg_now_ns();
    taken = nic->ops->tx_burst(nic, 0, pkts, n);
    for (uint32_t i = 0; i < n; i++) {
        if (i < taken) {
            sent(p, now_ns);
        } else {
            p->counts.refused++;
            nic->ops->pkt_free(nic, 0, pkts[i]);
        }
    }
    p->counts.cost_tx_ticks += probe_ticks() - ticks;
    p->counts.cost_tx_packets += taken;
    p->counts.cost_tx_bursts++;
    return taken;
}

static uint32_t rx_most(const struct mn_probe *p)
{
    return p->cfg.mode == MN_PROBE_ICMP ? PROBE_BURST : p->cfg.burst;
}

static uint32_t receive(struct mn_probe *p)
{
    struct mn_nic *nic = p->cfg.nic;
    struct mn_pkt *pkts[PROBE_BURST], *back[PROBE_BURST];
    uint64_t ticks = probe_ticks(), now_ns;
    uint32_t got = nic->ops->rx_burst(nic, 0, pkts, rx_most(p)), n = 0, taken = 0;
    uint32_t len[PROBE_BURST];

    if (got == 0) {
        return 0;
    }
    now_ns = mn_msg_now_ns();
    for (uint32_t i = 0; i < got; i++) {
        if (mn_probe_take(p, pkts[i], now_ns)) {
            len[n] = pkts[i]->len;
            back[n++] = pkts[i];
        } else {
            nic->ops->pkt_free(nic, 0, pkts[i]);
        }
    }
    if (n > 0) {
        taken = nic->ops->tx_burst(nic, 0, back, n);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (i < taken) {
            p->stats->tx_msgs++;
            p->stats->tx_bytes += len[i];
        } else {
            p->counts.refused++;
            nic->ops->pkt_free(nic, 0, back[i]);
        }
    }
    p->counts.bounced += taken;
    p->counts.cost_rx_ticks += probe_ticks() - ticks;
    p->counts.cost_rx_packets += got;
    p->counts.cost_rx_bursts++;
    return got;
}

/* Asks for the next hop's address until it is known: 0 or -EHOSTUNREACH. */
static int resolve(struct mn_probe *p, uint64_t now_ns)
{
    if (p->resolved || all_sent(p)) {
        return 0;
    }
    if (p->arp_began_ns == 0) {
        p->arp_began_ns = now_ns;
    }
    if (now_ns - p->arp_began_ns >= p->cfg.arp_timeout_ns) {
        return -EHOSTUNREACH;
    }
    if (now_ns >= p->arp_next_ns) {
        p->arp_next_ns = now_ns + ARP_RETRY_NS;
        mn_probe_ask_arp(p);
    }
    return 0;
}

/* How long nothing has to be done unless a frame comes in; 0: not at all. */
static uint64_t idle_time(const struct mn_probe *p, uint64_t now_ns, uint64_t until_ns)
{
    uint64_t at = until_ns, early = p->cfg.spin_ns > 0 ? EARLY_NS : 0;

    if (p->cfg.nic->wake_ns != 0) {
        at = mn_min_u64(at, p->cfg.nic->wake_ns);
    }
    if (!p->resolved) {
        at = mn_min_u64(at, p->arp_next_ns);
    } else if (!all_sent(p)) {
        bool full = p->cfg.window != 0 && p->in_flight >= p->cfg.window;
        uint64_t due = due_ns(p, p->next_seq);

        at = mn_min_u64(at, full ? UINT64_MAX : due - mn_min_u64(early, due));
    }
    if (p->in_flight > 0) {
        /* oldest is one that waits: expire() has seen to that. */
        uint64_t sent_ns = p->slots[p->oldest % MN_PROBE_SLOTS].sent_ns;

        at = mn_min_u64(at, sent_ns + p->cfg.timeout_ns);
    }
    return at > now_ns ? at - now_ns : 0;
}

static int sleep_for(const struct mn_probe *p, uint64_t ns)
{
    struct pollfd fd = {.fd = p->cfg.nic->rx_fd, .events = POLLIN};
    int rc;

    if (fd.fd < 0) {
        ns = mn_min_u64(ns, NAP_NS);
    }
    rc = mn_os_poll(&fd, 1, ns);
    if (rc > 0 && (fd.revents & POLLIN) == 0) {
        /* A device that went away would answer every poll at once. */
        fd.fd = -1;
        rc = mn_os_poll(&fd, 1, mn_min_u64(ns, NAP_NS));
    }
    return rc;
}

static void tell_time(const struct mn_probe *p, uint64_t now_ns)
{
    for (uint32_t i = 0; i < MN_PROBE_WATCHERS_MAX && p->cfg.watch[i] != NULL; i++) {
        p->cfg.watch[i](p->cfg.watch_ctx[i], now_ns);
    }
}

static int probe_loop(struct mn_probe *p, uint64_t until_ns, const volatile int *stop)
{
    uint64_t idle_since_ns = 0; /* 0: not idle */

    for (;;) {
        uint64_t now_ns = mn_msg_now_ns(), idle_ns;
        uint32_t worked;
        int rc;

        tell_time(p, now_ns);
        worked = receive(p);
        rc = resolve(p, now_ns);
        if (rc != 0) {
            return rc;
        }
        if (p->resolved && p->cfg.mode != MN_PROBE_BOUNCE) {
            worked += send_due(p, now_ns);
            expire(p, now_ns);
        }
        if (all_sent(p) && p->in_flight == 0 && p->cfg.mode != MN_PROBE_BOUNCE) {
            return 1;
        }
        if (now_ns >= until_ns || (stop != NULL && *stop != 0) ||
            events_fill(p) > PROBE_EVENTS / 2) {
            return 0;
        }
        if (worked > 0) {
            idle_since_ns = 0;
            continue;
        }
        if (events_fill(p) > 0) {
            return 0;
        }
        idle_since_ns = idle_since_ns == 0 ? now_ns : idle_since_ns;
        idle_ns = idle_time(p, now_ns, until_ns);
        if (idle_ns == 0 || now_ns - idle_since_ns < p->cfg.spin_ns) {
            mn_os_relax();
            continue;
        }
        rc = sleep_for(p, idle_ns);
        if (rc < 0) {
            return rc == -EINTR ? 0 : rc;
        }
        idle_since_ns = 0;
    }
}

int mn_probe_run(struct mn_probe *p, uint64_t until_ns, const volatile int *stop)
{
    uint64_t ns = mn_msg_now_ns(), ticks = probe_ticks();
    int rc = probe_loop(p, until_ns, stop);

    p->counts.cost_run_ns += mn_msg_now_ns() - ns;
    p->counts.cost_run_ticks += probe_ticks() - ticks;
    return rc;
}

void mn_probe_drain(struct mn_probe *p)
{
    p->draining = true;
}

uint32_t mn_probe_in_flight(const struct mn_probe *p)
{
    return p->in_flight;
}

struct mn_probe_counts mn_probe_get_counts(const struct mn_probe *p)
{
    return p->counts;
}

bool mn_probe_next_hop(const struct mn_probe *p, uint8_t mac[6])
{
    memcpy(mac, p->next_hop_mac, 6);
    return p->resolved;
}
