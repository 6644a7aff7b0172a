/* SPDX-License-Identifier: MIT */
/* One lwIP instance: netif driver on the in-memory wire, and the client or server application. */
#include "lwip_host.h"

#include <stdlib.h>
#include <string.h>

#include "lwip/etharp.h"
#include "lwip/init.h"
#include "lwip/netif.h"
#include "lwip/tcp.h"
#include "lwip/timeouts.h"
#include "netif/ethernet.h"

#define WIRE_SLOTS   1024u
#define FRAME_BYTES  1536u
#define PORT         888u
#define SOURCE_BYTES 65536u
#define APP_BYTES    (TCP_WND + 65536u)
#define VERIFY_MSGS  1000u      /* so many replies are compared in full, the rest by number */
#define VERIFY_BYTES (4u << 20) /* bulk: so much of the stream is compared */

/* A frame buffer. It carries the receiver's pbuf, so that input needs no copy and no allocation:
 * the one copy, in the sender's driver, stands for what a NIC's DMA does. */
struct wire_slot {
    struct pbuf_custom pbuf;
    struct mn_lwip_wire *wire;
    uint32_t len_bytes;
    _Alignas(64) uint8_t frame[FRAME_BYTES];
};

struct mn_lwip_wire {
    uint32_t head;
    uint32_t tail;
    uint32_t free_count;
    struct wire_slot *queue[WIRE_SLOTS];
    struct wire_slot *free_list[WIRE_SLOTS];
    struct wire_slot slots[WIRE_SLOTS];
};

static struct mn_lwip_config config;
static struct mn_lwip_wire *transmit_wire;
static struct mn_lwip_wire *receive_wire;
static struct netif nic;
static struct tcp_pcb *connection;
static struct mn_lwip_counts counts;
static uint32_t clock_ms;

static uint8_t app_in[APP_BYTES]; /* received and not yet consumed (request), or the sink (bulk) */
static uint32_t app_in_bytes;
static uint64_t stream_bytes; /* bulk: bytes sent or read so far */
static uint64_t next_request;
static uint64_t next_reply;
static uint8_t source[2 * SOURCE_BYTES];

u32_t sys_now(void)
{
    return clock_ms;
}

/* ---- the wire and lwIP's driver ---- */

static void slot_release(struct pbuf *p)
{
    struct wire_slot *slot = (struct wire_slot *)(void *)p;
    struct mn_lwip_wire *wire = slot->wire;

    wire->free_list[wire->free_count++] = slot;
}

static struct mn_lwip_wire *wire_open(void)
{
    struct mn_lwip_wire *wire = aligned_alloc(64, sizeof(*wire));

    if (!wire)
        abort();
    memset(wire, 0, sizeof(*wire));
    for (uint32_t i = 0; i < WIRE_SLOTS; i++) {
        wire->slots[i].wire = wire;
        wire->free_list[wire->free_count++] = &wire->slots[i];
    }
    return wire;
}

static err_t nic_transmit(struct netif *netif, struct pbuf *p)
{
    struct mn_lwip_wire *wire = transmit_wire;
    struct wire_slot *slot;
    uint32_t at = 0;

    (void)netif;
    if (wire->free_count == 0 || p->tot_len > FRAME_BYTES) {
        counts.frames_lost++;
        return ERR_MEM;
    }
    slot = wire->free_list[--wire->free_count];
    for (const struct pbuf *q = p; q; q = q->next) {
        memcpy(slot->frame + at, q->payload, q->len);
        at += q->len;
    }
    slot->len_bytes = at;
    wire->queue[wire->head++ % WIRE_SLOTS] = slot;
    counts.frames_sent++;
    return ERR_OK;
}

static void nic_receive(void)
{
    struct mn_lwip_wire *wire = receive_wire;

    for (uint32_t i = 0; i < config.burst_frames && wire->tail != wire->head; i++) {
        struct wire_slot *slot = wire->queue[wire->tail++ % WIRE_SLOTS];
        struct pbuf *p;

        slot->pbuf.custom_free_function = slot_release;
        p = pbuf_alloced_custom(PBUF_RAW, (u16_t)slot->len_bytes, PBUF_REF, &slot->pbuf,
                                slot->frame, FRAME_BYTES);
        if (nic.input(p, &nic) != ERR_OK)
            pbuf_free(p);
    }
}

static err_t nic_open(struct netif *netif)
{
    static const uint8_t mac[2][6] = {{2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 1}};

    netif->name[0] = 'm';
    netif->name[1] = 'n';
    netif->mtu = 1500;
    netif->hwaddr_len = 6;
    memcpy(netif->hwaddr, mac[config.client], 6);
    netif->output = etharp_output;
    netif->linkoutput = nic_transmit;
    netif->flags =
        NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET | NETIF_FLAG_LINK_UP;
    return ERR_OK;
}

/* ---- the application ---- */

/* Queue one message; `more` tells lwIP that another follows in this pass. */
static bool write_message(const void *message, bool more)
{
    const u8_t flags = more ? TCP_WRITE_FLAG_COPY | TCP_WRITE_FLAG_MORE : TCP_WRITE_FLAG_COPY;

    return tcp_write(connection, message, (u16_t)config.msg_bytes, flags) == ERR_OK;
}

static void server_step(void)
{
    const uint32_t msg_bytes = config.msg_bytes;
    uint32_t at = 0;

    while (app_in_bytes - at >= msg_bytes) {
        if (!write_message(app_in + at, app_in_bytes - at >= 2 * msg_bytes))
            break;
        at += msg_bytes;
    }
    app_in_bytes -= at;
    if (at && app_in_bytes)
        memmove(app_in, app_in + at, app_in_bytes);
}

static void client_step(void)
{
    const uint32_t msg_bytes = config.msg_bytes;
    uint32_t at = 0;

    for (; app_in_bytes - at >= msg_bytes; at += msg_bytes) {
        uint64_t number;

        memcpy(&number, app_in + at, sizeof(number));
        counts.errors += number != next_reply;
        if (next_reply++ < VERIFY_MSGS)
            counts.errors += memcmp(app_in + at + sizeof(number), source + sizeof(number),
                                    msg_bytes - sizeof(number)) != 0;
        counts.msgs++;
    }
    app_in_bytes -= at;
    if (at && app_in_bytes)
        memmove(app_in, app_in + at, app_in_bytes);
    while (next_request - next_reply < config.window_msgs) {
        memcpy(source, &next_request, sizeof(next_request));
        if (!write_message(source, next_request + 1 - next_reply < config.window_msgs))
            break;
        next_request++;
    }
}

static void bulk_step(void)
{
    for (uint32_t i = 0; i < config.writes_per_pass; i++) {
        if (tcp_sndbuf(connection) < config.msg_bytes ||
            !write_message(source + stream_bytes % SOURCE_BYTES, true))
            break;
        stream_bytes += config.msg_bytes;
    }
}

static void app_step(void)
{
    if (!config.client && config.work == MN_LWIP_REQUEST)
        server_step();
    else if (config.client && config.work == MN_LWIP_REQUEST)
        client_step();
    else if (config.client)
        bulk_step();
}

/* Copy into a buffer of SOURCE_BYTES that is used round and round, as a reader would. */
static void sink(const uint8_t *data, uint32_t len_bytes)
{
    while (len_bytes) {
        const uint32_t at = (uint32_t)(stream_bytes % SOURCE_BYTES);
        const uint32_t part = LWIP_MIN(len_bytes, SOURCE_BYTES - at);

        memcpy(app_in + at, data, part);
        if (stream_bytes < VERIFY_BYTES)
            counts.errors += memcmp(app_in + at, source + at, part) != 0;
        stream_bytes += part;
        data += part;
        len_bytes -= part;
    }
    counts.msgs = stream_bytes / config.msg_bytes;
}

static err_t on_receive(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    (void)arg;
    (void)err;
    if (!p) {
        counts.errors++;
        return ERR_OK;
    }
    for (const struct pbuf *q = p; q; q = q->next) {
        if (config.work == MN_LWIP_BULK) {
            sink(q->payload, q->len);
        } else {
            memcpy(app_in + app_in_bytes, q->payload, q->len);
            app_in_bytes += q->len;
        }
    }
    if (config.reply_in_callback)
        app_step();
    tcp_recved(pcb, p->tot_len);
    pbuf_free(p);
    return ERR_OK;
}

static void on_error(void *arg, err_t err)
{
    (void)arg;
    (void)err;
    connection = NULL;
    counts.errors++;
}

static void use_connection(struct tcp_pcb *pcb)
{
    tcp_nagle_disable(pcb);
    tcp_recv(pcb, on_receive);
    tcp_err(pcb, on_error);
    connection = pcb;
}

static err_t on_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    (void)arg;
    if (err != ERR_OK)
        return err;
    use_connection(pcb);
    return ERR_OK;
}

static err_t on_connected(void *arg, struct tcp_pcb *pcb, err_t err)
{
    (void)arg;
    if (err != ERR_OK)
        return err;
    use_connection(pcb);
    return ERR_OK;
}

static void host_open(const struct mn_lwip_config *wanted, struct mn_lwip_wire *transmit,
                      struct mn_lwip_wire *receive)
{
    ip4_addr_t address, mask, gateway, peer;
    struct tcp_pcb *pcb;

    config = *wanted;
    transmit_wire = transmit;
    receive_wire = receive;
    for (uint32_t i = 0; i < sizeof(source); i++)
        source[i] = (uint8_t)((i % SOURCE_BYTES) * 2654435761u >> 24);
    lwip_init();
    IP4_ADDR(&address, 10, 0, 0, config.client ? 1 : 2);
    IP4_ADDR(&peer, 10, 0, 0, config.client ? 2 : 1);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    ip4_addr_set_zero(&gateway);
    if (!netif_add(&nic, &address, &mask, &gateway, NULL, nic_open, ethernet_input))
        abort();
    netif_set_default(&nic);
    netif_set_up(&nic);
    pcb = tcp_new();
    if (!pcb)
        abort();
    if (config.client) {
        if (tcp_connect(pcb, &peer, PORT, on_connected) != ERR_OK)
            abort();
        return;
    }
    if (tcp_bind(pcb, IP_ADDR_ANY, PORT) != ERR_OK)
        abort();
    pcb = tcp_listen(pcb);
    tcp_accept(pcb, on_accept);
}

static bool host_connected(void)
{
    return connection != NULL;
}

/* One pass: frames in, application, whatever is queued out, timers when the clock has moved. */
static void host_pass(uint32_t now_ms)
{
    nic_receive();
    if (connection) {
        if (!config.reply_in_callback || next_request == 0)
            app_step();
        if (connection->unsent)
            tcp_output(connection);
    }
    if (now_ms != clock_ms) {
        clock_ms = now_ms;
        sys_check_timeouts();
    }
}

static struct mn_lwip_counts host_counts(void)
{
    return counts;
}

extern const struct mn_lwip_ops mn_lwip_ops;
const struct mn_lwip_ops mn_lwip_ops = {
    .version = LWIP_VERSION_STRING,
    .wire_open = wire_open,
    .open = host_open,
    .connected = host_connected,
    .pass = host_pass,
    .counts = host_counts,
};
