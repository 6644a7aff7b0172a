/* SPDX-License-Identifier: MIT */
#include "fz_app.h"

#define CHUNK_BYTES  (128u << 10)
#define RECEIVE_MANY 64u

static uint8_t chunk[CHUNK_BYTES], want[CHUNK_BYTES];

void fz_app_open(struct fz_app *a, struct fz_host *h, uint32_t chan)
{
    *a = (struct fz_app){.h = h, .chan = chan};
    for (uint32_t i = 0; i < FZ_FLOWS; i++) {
        a->flows[i].id = MN_FLOW_NONE;
    }
}

struct mn_app *fz_app_chan(const struct fz_app *a)
{
    return a->h->chans[a->chan].app;
}

struct fz_flow *fz_flow_of(struct fz_app *a, uint32_t id)
{
    struct fz_flow *f = &a->flows[MN_FLOW_SLOT(id) % FZ_FLOWS];
    struct mn_app_flow_info info;

    if (f->id == id) {
        return f;
    }
    if (mn_app_flow_info(fz_app_chan(a), id, &info) != 0) {
        return NULL;
    }
    *f = (struct fz_flow){.id = id, .local_port = info.local_port, .remote_port = info.remote_port};
    return f;
}

static void token_add(struct fz_app *a, int64_t token)
{
    if (token <= 0) {
        return;
    }
    if (a->n_tokens == MN_ARRAY_LEN(a->tokens)) {
        FZ_CHECK(mn_app_forget(fz_app_chan(a), a->tokens[0]) == 0);
        memmove(a->tokens, a->tokens + 1, sizeof(a->tokens) - sizeof(a->tokens[0]));
        a->n_tokens--;
    }
    a->tokens[a->n_tokens++] = token;
}

static bool is_framed(const struct fz_app *a, uint16_t local, uint16_t remote)
{
    return a->mnp || fz_is_framed(local, remote);
}

static uint32_t proto_of(const struct fz_app *a, uint16_t local, uint16_t remote)
{
    if (a->mnp) {
        return MN_PROTO_UDP;
    }
    return fz_is_framed(local, remote) ? MN_PROTO_TCP : MN_PROTO_STREAM;
}

/* Number msg of the messages between two ports: its length, and where its content begins. */
static uint32_t message(const struct fz_app *a, uint16_t local, uint16_t remote, uint32_t msg,
                        uint32_t *off)
{
    const uint32_t *lens;

    if (a->mnp) {
        *off = fz_mnp_message_at(msg);
        return fz_mnp_message_len(local, remote, msg);
    }
    uint32_t n = fz_messages(local, remote, &lens);

    *off += 4;
    return lens[msg % n];
}

void fz_app_listen(struct fz_app *a, uint32_t port_index, uint32_t backlog)
{
    uint16_t port = (uint16_t)(FZ_PORT_FIRST + port_index);

    token_add(a, mn_app_listen(fz_app_chan(a), 0, port, proto_of(a, port, 0), backlog));
}

void fz_app_unlisten(struct fz_app *a, uint32_t port_index)
{
    if (a->listeners[port_index] != 0) {
        token_add(a, mn_app_unlisten(fz_app_chan(a), a->listeners[port_index]));
        a->listeners[port_index] = 0;
    }
}

void fz_app_connect(struct fz_app *a, uint32_t ip, uint16_t port, uint16_t local_port,
                    uint32_t timeout_ms)
{
    uint32_t proto = proto_of(a, local_port, port);

    token_add(a, mn_app_connect(fz_app_chan(a), 0, local_port, ip, port, proto, timeout_ms));
}

void fz_app_results(struct fz_app *a)
{
    struct mn_app *app = fz_app_chan(a);
    struct mn_ctl_evt evt;
    uint32_t id;

    for (uint32_t i = 0; i < a->n_tokens;) {
        int rc = mn_app_result(app, a->tokens[i], &evt);

        FZ_CHECK(rc == 0 || rc == 1);
        if (rc == 0) {
            i++;
            continue;
        }
        a->n_tokens--;
        memmove(a->tokens + i, a->tokens + i + 1, (a->n_tokens - i) * sizeof(a->tokens[0]));
        if (evt.status == 0 && evt.listener != 0 && evt.value == evt.listener) {
            for (uint32_t k = 0; k < FZ_PORT_COUNT; k++) {
                if (a->listeners[k] == 0) {
                    a->listeners[k] = evt.listener;
                    break;
                }
            }
        } else if (evt.status == 0 && evt.remote_ip != 0) {
            (void)fz_flow_of(a, evt.flow);
        }
    }
    for (uint32_t k = 0; k < FZ_PORT_COUNT; k++) {
        while (a->listeners[k] != 0 && (id = mn_app_accept(app, a->listeners[k])) != MN_FLOW_NONE) {
            (void)fz_flow_of(a, id);
        }
    }
}

int64_t fz_app_send(struct fz_app *a, struct fz_flow *f, uint32_t len, uint32_t flags)
{
    struct mn_app *app = fz_app_chan(a);
    int64_t rc;

    if (is_framed(a, f->local_port, f->remote_port)) {
        uint32_t off = f->tx_off;
        uint32_t msg = message(a, f->local_port, f->remote_port, f->tx_msg, &off);

        fz_content(f->local_port, f->remote_port, off, chunk, msg);
        rc = mn_app_send(app, f->id, chunk, msg);
        if (rc == 0) {
            f->tx_off += 4 + msg;
            f->tx_msg++;
            return 1;
        }
        return rc;
    }
    len = mn_min_u32(len, CHUNK_BYTES);
    fz_content(f->local_port, f->remote_port, f->tx_off, chunk, len);
    rc = mn_app_stream_send(app, f->id, chunk, len, flags & (MN_APP_MORE | MN_APP_URG));
    FZ_CHECK(rc <= (int64_t)len && (rc != 0 || len == 0));
    if (rc > 0) {
        f->tx_off += (uint32_t)rc;
    }
    return rc;
}

static bool is_known(const struct fz_app *a, const struct mn_app_flow_info *info)
{
    return a->known == NULL ||
           a->known(a->ctx, info->local_port, info->remote_port, info->remote_ip);
}

static void take_message(struct fz_app *a, const struct mn_app_msg *msg)
{
    struct mn_app *app = fz_app_chan(a);
    struct mn_app_flow_info info;

    if (msg->len > CHUNK_BYTES || msg->status != 0) {
        FZ_CHECK(msg->status == 0 || msg->len == 0);
        mn_app_skip(app);
        return;
    }
    FZ_CHECK(mn_app_flow_info(app, msg->flow, &info) == 0);
    struct fz_flow *f = fz_flow_of(a, msg->flow);
    FZ_CHECK(f != NULL && info.proto == (a->mnp ? MN_PROTO_UDP : MN_PROTO_TCP));
    FZ_CHECK(mn_app_take(app, chunk, sizeof(chunk)) == (int64_t)msg->len);
    a->received += msg->len + 1;
    if (!is_known(a, &info)) {
        return;
    }
    uint32_t off = f->rx_off;
    FZ_CHECK(msg->len == message(a, info.local_port, info.remote_port, f->rx_msg, &off));
    fz_content(info.local_port, info.remote_port, off, want, msg->len);
    FZ_CHECK(memcmp(chunk, want, msg->len) == 0);
    f->rx_off += 4 + msg->len;
    f->rx_msg++;
}

static void read_stream(struct fz_app *a, uint32_t id, uint32_t most)
{
    struct mn_app *app = fz_app_chan(a);
    struct mn_app_flow_info info;
    struct fz_flow *f = fz_flow_of(a, id);

    if (f == NULL || mn_app_flow_info(app, id, &info) != 0 || info.proto != MN_PROTO_STREAM) {
        return;
    }
    int64_t n = mn_app_stream_recv(app, id, chunk, mn_min_u32(most, CHUNK_BYTES), 0);
    if (n <= 0) {
        return;
    }
    a->received += (uint64_t)n;
    if (is_known(a, &info)) {
        fz_content(info.local_port, info.remote_port, f->rx_off, want, (uint32_t)n);
        FZ_CHECK(memcmp(chunk, want, (uint32_t)n) == 0);
    }
    f->rx_off += (uint32_t)n;
}

void fz_app_receive(struct fz_app *a, uint32_t most)
{
    struct mn_app *app = fz_app_chan(a);
    uint32_t ids[FZ_FLOWS];
    struct mn_app_msg msg;

    for (uint32_t n = 0; n < mn_min_u32(most, RECEIVE_MANY) && mn_app_peek(app, &msg) == 1; n++) {
        take_message(a, &msg);
    }
    uint32_t n = mn_min_u32(mn_app_flows(app, ids, FZ_FLOWS), FZ_FLOWS);
    for (uint32_t i = 0; i < n; i++) {
        read_stream(a, ids[i], most);
    }
}

void fz_app_skip(struct fz_app *a)
{
    struct mn_app *app = fz_app_chan(a);
    struct mn_app_msg msg;

    if (mn_app_peek(app, &msg) == 1) {
        struct fz_flow *f = fz_flow_of(a, msg.flow);

        if (f != NULL && msg.status == 0) {
            f->rx_msg++;
            f->rx_off += 4 + msg.len;
        }
        mn_app_skip(app);
    }
}

void fz_app_shutdown(struct fz_app *a, struct fz_flow *f)
{
    if (mn_app_shutdown_write(fz_app_chan(a), f->id) == 0) {
        f->shut = true;
    }
}

void fz_app_close(struct fz_app *a, struct fz_flow *f, uint32_t linger_ms)
{
    (void)mn_app_close_flow(fz_app_chan(a), f->id, linger_ms);
    f->closed = true;
}
