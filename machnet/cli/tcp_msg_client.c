/* SPDX-License-Identifier: MIT */
#include "machnet/cli/tcp_msg_gen.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "machnet/cli/tcp_frame.h"

struct mn_tcp_client {
    struct mn_msg_client app;
    struct mn_frame_tx tx;
    struct mn_frame_rx rx;
    uint64_t spin_ns;
    int fd;
    bool blocked; /* the socket took less than it was offered */
    uint8_t out[MN_TCP_CHUNK_BYTES];
    uint8_t in[MN_TCP_CHUNK_BYTES];
};

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t power = 1;
    while (power < at_least)
        power <<= 1;
    return power;
}

struct mn_tcp_client *mn_tcp_client_new(const struct mn_tcp_config *config,
                                        struct mn_msg_stats *stats)
{
    struct mn_tcp_client *client = calloc(1, sizeof(*client));
    if (client == NULL)
        return NULL;
    if (mn_msg_client_open(&client->app, stats, config->msg_size, config->window, config->msgs_max,
                           config->verify) != 0)
        goto fail;
    if (mn_frame_tx_open(&client->tx, power_of_two(config->window), config->msg_size) != 0)
        goto fail;
    int flags = fcntl(config->fd, F_GETFL);
    if (flags < 0 || fcntl(config->fd, F_SETFL, flags | O_NONBLOCK) != 0)
        goto fail;
    client->rx.verify = config->verify;
    client->spin_ns = config->spin_ns;
    client->fd = config->fd;
    return client;
fail:
    mn_tcp_client_free(client);
    return NULL;
}

void mn_tcp_client_free(struct mn_tcp_client *client)
{
    if (client == NULL)
        return;
    mn_msg_client_close(&client->app);
    mn_frame_tx_close(&client->tx);
    free(client);
}

static int client_fail(struct mn_tcp_client *client, uint32_t kind, int error)
{
    client->app.fatal = (struct mn_msg_fault){
        .kind = kind,
        .length = client->rx.length,
        .offset = client->rx.seen,
        .error = error,
    };
    return -error;
}

static bool would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* Fills the window and offers what is queued to the socket with one call. Returns bytes sent. */
static int64_t client_send(struct mn_tcp_client *client)
{
    struct mn_msg_client *app = &client->app;
    uint64_t now_ns = app->idle_count > 0 ? mn_msg_now_ns() : 0;
    uint32_t slot;
    while (mn_msg_client_next(app, now_ns, &slot))
        mn_frame_tx_push(&client->tx, slot);
    if (client->tx.count == 0)
        return 0;
    uint32_t ready = mn_frame_tx_copy(&client->tx, client->out, sizeof(client->out));
    ssize_t sent = send(client->fd, client->out, ready, MSG_NOSIGNAL | MSG_DONTWAIT);
    client->blocked = sent < (ssize_t)ready;
    /* EPIPE: the server has closed. What it sent before is still to be read, and then its end. */
    if (sent < 0)
        return would_block(errno) || errno == EPIPE
                   ? 0
                   : client_fail(client, MN_MSG_FAULT_SYSTEM, errno);
    uint32_t frames = mn_frame_tx_consume(&client->tx, (uint32_t)sent);
    app->stats->tx_msgs += frames;
    app->stats->tx_bytes += (uint64_t)frames * app->msg_size;
    return sent;
}

/* Reads once and takes every reply that is complete. Returns bytes read. */
static int64_t client_recv(struct mn_tcp_client *client)
{
    ssize_t got = recv(client->fd, client->in, sizeof(client->in), MSG_DONTWAIT);
    if (got < 0)
        return would_block(errno) ? 0 : client_fail(client, MN_MSG_FAULT_SYSTEM, errno);
    if (got == 0) {
        bool torn = client->rx.seen != 0;
        return client_fail(client, torn ? MN_MSG_FAULT_TORN : MN_MSG_FAULT_CLOSED, ECONNRESET);
    }
    uint64_t now_ns = mn_msg_now_ns();
    struct mn_frame_rx *rx = &client->rx;
    const uint8_t *at = client->in;
    const uint8_t *end = at + got;
    int rc;
    while ((rc = mn_frame_rx_next(rx, &at, end)) == 1) {
        rc = mn_msg_client_reply(&client->app, rx->slot, rx->length, rx->wrong_at, rx->wrong_got,
                                 now_ns);
        if (rc != 0)
            return rc;
    }
    return rc < 0 ? client_fail(client, MN_MSG_FAULT_LENGTH, EPROTO) : got;
}

/* Sleeps until the socket has something for us. False when a signal came. */
static bool client_sleep(struct mn_tcp_client *client, uint64_t timeout_ns)
{
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    if (client->blocked && client->tx.count > 0)
        ready.events |= POLLOUT;
    struct timespec timeout = {
        .tv_sec = (time_t)(timeout_ns / UINT64_C(1000000000)),
        .tv_nsec = (long)(timeout_ns % UINT64_C(1000000000)),
    };
    return ppoll(&ready, 1, &timeout, NULL) >= 0;
}

int mn_tcp_client_run(struct mn_tcp_client *client, uint64_t until_ns, const volatile int *stop)
{
    uint64_t busy_at_ns = mn_msg_now_ns();
    for (;;) {
        int64_t sent = client_send(client);
        if (sent < 0)
            return (int)sent;
        int64_t got = mn_msg_client_in_flight(&client->app) > 0 ? client_recv(client) : 0;
        if (got < 0)
            return (int)got;
        if (mn_msg_client_done(&client->app))
            return 1;
        uint64_t now_ns = mn_msg_now_ns();
        if (now_ns >= until_ns || (stop != NULL && *stop != 0))
            return 0;
        if (sent > 0 || got > 0) {
            busy_at_ns = now_ns;
            continue;
        }
        if (now_ns - busy_at_ns < client->spin_ns) {
            mn_msg_relax(client->spin_ns);
            continue;
        }
        if (!client_sleep(client, until_ns - now_ns))
            return 0;
        busy_at_ns = mn_msg_now_ns();
    }
}

void mn_tcp_client_drain(struct mn_tcp_client *client)
{
    client->app.draining = true;
}

uint32_t mn_tcp_client_in_flight(const struct mn_tcp_client *client)
{
    return mn_msg_client_in_flight(&client->app);
}

struct mn_msg_fault mn_tcp_client_fault(const struct mn_tcp_client *client)
{
    return client->app.fatal;
}

struct mn_msg_fault mn_tcp_client_payload_fault(const struct mn_tcp_client *client)
{
    return client->app.payload;
}
