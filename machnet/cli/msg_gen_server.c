/* SPDX-License-Identifier: MIT */
#include "machnet/cli/gen_io.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

#include "machnet/cli/fault_log.h"

#define FLOW_SLOTS     65536u
#define OWED_MIN_SLOTS 64u
static_assert((MN_GEN_SERVER_OWED_MAX & (MN_GEN_SERVER_OWED_MAX - 1)) == 0, "used as a mask");

/* The replies for which a flow had no room, in order: its peer does not read. */
struct owed {
    uint32_t flow;
    uint32_t head;
    uint32_t count;
    uint32_t capacity; /* a power of two */
    uint64_t *slots;
    struct owed *next;
    struct owed **from; /* what points here */
};

/* Connections of one lane of the channel: of one engine. */
struct lane {
    struct gen_io io;
    struct mn_msg_stats *stats;
    struct owed *owing;
    struct owed **by_slot; /* of the flow's id; NULL: nothing owed */
    struct mn_fault_log *faults;
};

struct mn_gen_server {
    struct mn_fault_log faults;
    uint32_t n_lanes;
    struct lane lanes[MN_LANES_MAX];
};

static void owed_drop(struct lane *lane, struct owed *owed)
{
    lane->by_slot[MN_FLOW_SLOT(owed->flow)] = NULL;
    *owed->from = owed->next;
    if (owed->next != NULL)
        owed->next->from = owed->from;
    free(owed->slots);
    free(owed);
}

static void fault_note(struct lane *lane, uint32_t flow, struct mn_msg_fault fault)
{
    struct mn_app_flow_info info;

    if (mn_app_flow_info(lane->io.app, flow, &info) == 0) {
        fault.peer_ip_be = htonl(info.remote_ip);
        fault.peer_port = info.remote_port;
    }
    mn_fault_log_put(lane->faults, &fault);
}

/* --- replies that have to wait ---------------------------------------------------------------- */

/* What is owed to this very flow; what was owed to an earlier one in its slot is forgotten. */
static struct owed *owed_find(struct lane *lane, uint32_t flow)
{
    struct owed *owed = lane->by_slot[MN_FLOW_SLOT(flow)];
    if (owed != NULL && owed->flow != flow) {
        owed_drop(lane, owed);
        return NULL;
    }
    return owed;
}

static bool owed_grow(struct owed *owed)
{
    uint32_t capacity = owed->capacity == 0 ? OWED_MIN_SLOTS : owed->capacity * 2;
    uint64_t *slots = malloc(capacity * sizeof(*slots));
    if (slots == NULL)
        return false;
    for (uint32_t i = 0; i < owed->count; i++)
        slots[i] = owed->slots[(owed->head + i) & (owed->capacity - 1)];
    free(owed->slots);
    owed->slots = slots;
    owed->capacity = capacity;
    owed->head = 0;
    return true;
}

static struct owed *owed_new(struct lane *lane, uint32_t flow)
{
    struct owed *owed = calloc(1, sizeof(*owed));
    if (owed == NULL)
        return NULL;
    owed->flow = flow;
    owed->next = lane->owing;
    owed->from = &lane->owing;
    if (owed->next != NULL)
        owed->next->from = &owed->next;
    lane->owing = owed;
    lane->by_slot[MN_FLOW_SLOT(flow)] = owed;
    return owed;
}

/* False when the peer has asked for too much, or memory is short. */
static bool owed_put(struct lane *lane, uint32_t flow, uint64_t slot)
{
    struct owed *owed = owed_find(lane, flow);
    if (owed == NULL)
        owed = owed_new(lane, flow);
    if (owed == NULL || owed->count == MN_GEN_SERVER_OWED_MAX)
        return false;
    if (owed->count == owed->capacity && !owed_grow(owed))
        return false;
    owed->slots[(owed->head + owed->count++) & (owed->capacity - 1)] = slot;
    return true;
}

static void reply_sent(struct lane *lane)
{
    lane->stats->tx_msgs++;
    lane->stats->tx_bytes += lane->io.msg_size;
}

/* Sends what is owed and has room by now. Returns how many replies. */
static uint32_t owed_send(struct lane *lane)
{
    uint32_t n = 0;
    struct owed *next;
    for (struct owed *owed = lane->owing; owed != NULL; owed = next) {
        int rc = 0;
        next = owed->next;
        while (owed->count > 0) {
            rc = gen_io_send(&lane->io, owed->flow, owed->slots[owed->head]);
            if (rc != 0)
                break;
            owed->head = (owed->head + 1) & (owed->capacity - 1);
            owed->count--;
            reply_sent(lane);
            n++;
        }
        /* Any other answer than "not now" means that the flow has ended. */
        if (rc != -EAGAIN)
            owed_drop(lane, owed);
    }
    return n;
}

/* --- messages --------------------------------------------------------------------------------- */

/* Ends a flow for what its peer did; its message at the head is taken off with it. */
static void flow_end(struct lane *lane, uint32_t flow, uint32_t linger_ms,
                     struct mn_msg_fault fault)
{
    struct owed *owed = owed_find(lane, flow);

    fault_note(lane, flow, fault);
    if (owed != NULL)
        owed_drop(lane, owed);
    mn_app_skip(lane->io.app);
    (void)mn_app_close_flow(lane->io.app, flow, linger_ms);
}

/* Answers one message. Returns false when its flow was ended. */
static bool reply(struct lane *lane, uint32_t flow, uint64_t slot)
{
    int rc = -EAGAIN;

    /* What waits already goes first. */
    if (MN_LIKELY(lane->owing == NULL) || owed_find(lane, flow) == NULL)
        rc = gen_io_send(&lane->io, flow, slot);
    if (MN_LIKELY(rc == 0)) {
        reply_sent(lane);
    } else if (rc == -EAGAIN && !owed_put(lane, flow, slot)) {
        flow_end(lane, flow, 0, (struct mn_msg_fault){.kind = MN_MSG_FAULT_OWED});
        return false;
    }
    /* Otherwise the flow has ended: nobody waits for the reply. */
    return true;
}

/* One message or event; afterwards it is off the channel. */
static void take_one(struct lane *lane, const struct mn_app_msg *head)
{
    struct mn_msg_stats *stats = lane->stats;
    struct gen_msg msg;

    if (MN_UNLIKELY(head->status != 0)) {
        flow_end(lane, head->flow, 0,
                 (struct mn_msg_fault){.kind = MN_MSG_FAULT_FLOW, .error = head->status});
        return;
    }
    if (MN_UNLIKELY(head->len < MN_MSG_HEADER_BYTES)) {
        /* What came before it is answered. */
        flow_end(lane, head->flow, MN_LINGER_DEFAULT,
                 (struct mn_msg_fault){.kind = MN_MSG_FAULT_LENGTH, .length = head->len});
        return;
    }
    gen_io_read(&lane->io, head->len, &msg);
    stats->rx_msgs++;
    stats->rx_bytes += head->len;
    if (MN_UNLIKELY(msg.wrong_at != MN_MSG_MATCH)) {
        stats->payload_faults++;
        fault_note(lane, head->flow,
                   (struct mn_msg_fault){
                       .kind = MN_MSG_FAULT_PAYLOAD,
                       .length = head->len,
                       .slot = msg.slot,
                       .offset = msg.wrong_at,
                       .expected = (uint8_t)msg.wrong_at,
                       .got = msg.got,
                   });
    }
    /* The reply first: taking the last message off publishes it along with the buffer. */
    if (reply(lane, head->flow, msg.slot))
        mn_app_skip(lane->io.app);
}

static int lane_turn(struct lane *lane)
{
    struct mn_app *app = lane->io.app;
    struct mn_app_msg head;
    uint32_t n = MN_UNLIKELY(lane->owing != NULL) ? owed_send(lane) : 0;
    int rc = 0;

    for (uint32_t i = 0; i < GEN_TURN_MSGS; i++, n++) {
        rc = mn_app_peek(app, &head);
        if (rc <= 0)
            break;
        take_one(lane, &head);
    }
    if (n > 0)
        mn_app_flush(app);
    if (rc < 0)
        return rc;
    return n > 0 ? GEN_WORKED : GEN_IDLE;
}

static int server_turn(void *ctx)
{
    struct mn_gen_server *server = ctx;
    int found = GEN_IDLE;

    for (uint32_t i = 0; i < server->n_lanes; i++) {
        int rc = lane_turn(&server->lanes[i]);

        if (MN_UNLIKELY(rc < 0))
            return rc;
        found |= rc;
    }
    return found;
}

struct mn_gen_server *mn_gen_server_new(const struct mn_gen_config *config,
                                        struct mn_msg_stats *stats)
{
    struct mn_gen_server *server = calloc(1, sizeof(*server));
    struct mn_app *app;

    if (server == NULL)
        return NULL;
    while ((app = mn_chan_lane_app(config->chan, server->n_lanes)) != NULL) {
        struct lane *lane = &server->lanes[server->n_lanes++];

        lane->stats = stats;
        lane->faults = &server->faults;
        lane->by_slot = calloc(FLOW_SLOTS, sizeof(struct owed *));
        if (gen_io_open(&lane->io, config, app) != 0 || lane->by_slot == NULL) {
            mn_gen_server_free(server);
            return NULL;
        }
    }
    return server;
}

void mn_gen_server_free(struct mn_gen_server *server)
{
    if (server == NULL)
        return;
    for (uint32_t i = 0; i < server->n_lanes; i++) {
        struct lane *lane = &server->lanes[i];

        while (lane->owing != NULL)
            owed_drop(lane, lane->owing);
        free(lane->by_slot);
        gen_io_close(&lane->io);
    }
    free(server);
}

int mn_gen_server_run(struct mn_gen_server *server, uint64_t until_ns, const volatile int *stop)
{
    int rc = gen_io_run(&server->lanes[0].io, server_turn, server, until_ns, stop);
    return rc < 0 ? rc : 0;
}

bool mn_gen_server_fault(struct mn_gen_server *server, struct mn_msg_fault *fault)
{
    return mn_fault_log_take(&server->faults, fault);
}

uint64_t mn_gen_server_untold(struct mn_gen_server *server)
{
    return mn_fault_log_untold(&server->faults);
}

uint64_t mn_gen_server_faults(const struct mn_gen_server *server)
{
    return server->faults.total;
}

uint32_t mn_gen_server_open_conns(const struct mn_gen_server *server)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < server->n_lanes; i++)
        n += mn_app_flows(server->lanes[i].io.app, NULL, 0);
    return n;
}
