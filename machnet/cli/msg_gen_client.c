/* SPDX-License-Identifier: MIT */
#include "machnet/cli/gen_io.h"

#include <errno.h>
#include <stdlib.h>

struct mn_gen_client {
    struct mn_msg_client app;
    struct gen_io io;
    uint32_t flow;
    bool closed; /* nothing more can be sent: what is left to receive says why */
};

struct mn_gen_client *mn_gen_client_new(const struct mn_gen_config *config,
                                        struct mn_msg_stats *stats)
{
    struct mn_gen_client *client = calloc(1, sizeof(*client));
    if (client == NULL)
        return NULL;
    client->flow = config->flow;
    if (mn_msg_client_open(&client->app, stats, config->msg_size, config->window, config->msgs_max,
                           config->verify) != 0 ||
        gen_io_open(&client->io, config, mn_chan_flow_lane(config->chan, &client->flow)) != 0) {
        mn_gen_client_free(client);
        return NULL;
    }
    client->app.rate_per_s = config->rate_per_s;
    return client;
}

void mn_gen_client_free(struct mn_gen_client *client)
{
    if (client == NULL)
        return;
    mn_msg_client_close(&client->app);
    gen_io_close(&client->io);
    free(client);
}

static int client_fail(struct mn_gen_client *client, uint32_t kind, uint32_t length, int error)
{
    client->app.fatal = (struct mn_msg_fault){.kind = kind, .length = length, .error = error};
    return -error;
}

/* Nothing is left to receive: has the server gone? */
static int client_look(struct mn_gen_client *client)
{
    struct mn_app_flow_info info;
    int rc = mn_app_flow_info(client->io.app, client->flow, &info);

    if (rc == 0 && !client->closed && !info.eof && !info.ended)
        return 0;
    if (rc == 0 && info.ended && info.error != 0 && info.error != ENOTCONN)
        return client_fail(client, MN_MSG_FAULT_FLOW, 0, info.error);
    return client_fail(client, MN_MSG_FAULT_CLOSED, 0, ECONNRESET);
}

static int client_reply(struct mn_gen_client *client, const struct mn_app_msg *head,
                        uint64_t now_ns)
{
    struct gen_msg msg;

    if (head->status != 0)
        return client_fail(client, MN_MSG_FAULT_FLOW, 0, head->status);
    if (head->len < MN_MSG_HEADER_BYTES)
        return client_fail(client, MN_MSG_FAULT_LENGTH, head->len, EPROTO);
    gen_io_read(&client->io, head->len, &msg);
    return mn_msg_client_reply(&client->app, msg.slot, head->len, msg.wrong_at, msg.got, now_ns);
}

/* Takes the replies that are there. Returns how many, or negative errno. */
static int client_recv(struct mn_gen_client *client)
{
    struct mn_app *app = client->io.app;
    struct mn_app_msg head;
    uint64_t now_ns = 0;
    int n = 0;

    while (n < (int)GEN_TURN_MSGS) {
        int rc = mn_app_peek(app, &head);
        if (rc < 0)
            return client_fail(client, MN_MSG_FAULT_FLOW, 0, -rc);
        if (rc == 0)
            break;
        if (n++ == 0)
            now_ns = mn_msg_now_ns();
        rc = client_reply(client, &head, now_ns);
        if (rc < 0)
            return rc;
        mn_app_skip(app);
    }
    return n;
}

/* Fills the window as far as the channel has room. Returns how many were sent. */
static int client_send(struct mn_gen_client *client)
{
    struct mn_msg_client *app = &client->app;
    uint32_t slot;
    int n = 0;

    if (app->idle_count == 0 || client->closed)
        return 0;
    uint64_t now_ns = mn_msg_now_ns();
    while (n < (int)GEN_TURN_MSGS && mn_msg_client_next(app, now_ns, &slot)) {
        int rc = gen_io_send(&client->io, client->flow, slot);
        if (rc == 0) {
            n++;
            continue;
        }
        mn_msg_client_untake(app, slot);
        client->closed = rc != -EAGAIN;
        break;
    }
    if (n > 0)
        mn_app_flush(client->io.app);
    app->stats->tx_msgs += (uint64_t)n;
    app->stats->tx_bytes += (uint64_t)n * app->msg_size;
    return n;
}

static int client_turn(void *ctx)
{
    struct mn_gen_client *client = ctx;
    int got = client_recv(client);
    if (got < 0)
        return got;
    int sent = client_send(client);
    client->io.wake_ns = mn_msg_client_due_ns(&client->app);
    if (mn_msg_client_done(&client->app))
        return GEN_FINISHED;
    if (got > 0 || sent > 0)
        return GEN_WORKED;
    return client_look(client);
}

int mn_gen_client_run(struct mn_gen_client *client, uint64_t until_ns, const volatile int *stop)
{
    return gen_io_run(&client->io, client_turn, client, until_ns, stop);
}

void mn_gen_client_drain(struct mn_gen_client *client)
{
    client->app.draining = true;
}

uint32_t mn_gen_client_in_flight(const struct mn_gen_client *client)
{
    return mn_msg_client_in_flight(&client->app);
}

struct mn_msg_fault mn_gen_client_fault(const struct mn_gen_client *client)
{
    return client->app.fatal;
}

struct mn_msg_fault mn_gen_client_payload_fault(const struct mn_gen_client *client)
{
    return client->app.payload;
}
