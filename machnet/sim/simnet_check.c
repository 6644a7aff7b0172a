/* SPDX-License-Identifier: MIT */
/* Invariants of a network: what is told to struct mn_check, and when. */
#include "simnet_int.h"

static void failed(struct mn_simnet *net)
{
    sim_error(net, "%s", mn_check_text(net->check));
    net->aborted = -EPROTO;
}

void sim_check_frame(struct simnode *node, const struct mn_pkt *pkt)
{
    struct mn_simnet *net = node->net;

    if (MN_UNLIKELY(mn_check_frame(net->check, node->number, pkt->data, pkt->len, sim_now(net)) <
                    0)) {
        failed(net);
    }
}

void sim_check_pass(struct simnode *node)
{
    struct mn_simnet *net = node->net;

    if (MN_UNLIKELY(mn_check_pass(net->check, node->number, node->stack->engine, sim_now(net)) <
                    0)) {
        failed(net);
    }
}

void sim_check_foreign(struct mn_simnet *net, const struct mn_pkt *pkt)
{
    if (net->check != NULL) {
        mn_check_foreign(net->check, pkt->data, pkt->len);
    }
}

static struct mn_check_conn conn_of(const struct mn_app_flow_info *f)
{
    return (struct mn_check_conn){f->local_ip, f->remote_ip, f->local_port, f->remote_port,
                                  f->proto == MN_PROTO_UDP};
}

/* The step that follows says so if something is wrong. */
static void app_given(void *ctx, const struct mn_app_flow_info *flow, uint64_t id,
                      const void *bytes, uint64_t len)
{
    struct mn_simnet *net = ctx;
    struct mn_check_conn conn = conn_of(flow);

    (void)mn_check_given(net->check, &conn, id, bytes, len, flow->proto != MN_PROTO_STREAM);
}

static void app_taken(void *ctx, const struct mn_app_flow_info *flow, uint64_t id,
                      const void *bytes, uint64_t len)
{
    struct mn_simnet *net = ctx;
    struct mn_check_conn conn = conn_of(flow);

    (void)mn_check_taken(net->check, &conn, id, bytes, len, flow->proto != MN_PROTO_STREAM,
                         sim_now(net));
}

int mn_simnet_checks(struct mn_simnet *net, bool on)
{
    const struct mn_group_tap tap = {.ctx = net, .given = app_given, .taken = app_taken};

    if (on == (net->check != NULL)) {
        return 0;
    }
    if (!on) {
        mn_group_set_tap(net->group, NULL);
        mn_check_free(net->check);
        net->check = NULL;
        return 0;
    }
    net->check = mn_check_new(0);
    if (net->check == NULL) {
        return -ENOMEM;
    }
    if (net->group->n == 0) { /* from the first byte of each connection on */
        mn_group_set_tap(net->group, &tap);
    }
    return 0;
}

int mn_simnet_check_all(struct mn_simnet *net)
{
    for (uint32_t i = 0; net->check != NULL && i < net->n_nodes; i++) {
        const struct mn_stack *s = net->nodes[i]->stack;

        if (s != NULL && mn_check_now(net->check, i, s->engine, sim_now(net)) < 0) {
            sim_error(net, "%s", mn_check_text(net->check));
            return -EPROTO;
        }
    }
    return 0;
}

struct mn_check *mn_simnet_check(struct mn_simnet *net)
{
    return net->check;
}
