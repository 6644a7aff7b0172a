/* SPDX-License-Identifier: MIT */
/* The network as a whole: nodes and links, made and unmade. */
#include "simnet_int.h"

#include <stdio.h>
#include <stdlib.h>

#define POOL_PKTS_DEFAULT 65536u
#define FRAME_MAX_DEFAULT 9014u
#define FRAME_MAX_MIN     256u
#define FRAME_MAX_MAX     (65535u + MN_ETH_HLEN)
#define MTU_DEFAULT       1500u
#define MTU_MIN           68u
#define INSTANT_DEFAULT   10000000u
#define RECORD_PKTS_MAX   (1u << 20)
#define RECORD_SNAP_MIN   128u
#define NODES_MAX         (1u << 16)
#define LINKS_MAX         (1u << 20)

int mn_simnet_new(struct mn_simnet **out, const struct mn_simnet_config *cfg)
{
    uint32_t pkts = cfg->pool_pkts != 0 ? cfg->pool_pkts : POOL_PKTS_DEFAULT;
    uint32_t frame_max = cfg->frame_max != 0 ? cfg->frame_max : FRAME_MAX_DEFAULT;
    struct mn_group_driver driver = mn_simnet_driver;
    struct mn_simnet *net;
    int rc;

    if (pkts > MN_PKTPOOL_PKTS_MAX || frame_max < FRAME_MAX_MIN || frame_max > FRAME_MAX_MAX ||
        cfg->record_pkts > RECORD_PKTS_MAX ||
        (cfg->record_snap != 0 && cfg->record_snap < RECORD_SNAP_MIN)) {
        return -EINVAL;
    }
    net = calloc(1, sizeof(*net));
    if (net == NULL) {
        return -ENOMEM;
    }
    net->seed = cfg->seed;
    net->instant_max = cfg->instant_max != 0 ? cfg->instant_max : INSTANT_DEFAULT;
    net->end_ns = mn_min_u64(cfg->end_ns, SIM_TIME_MAX);
    net->group = mn_group_new(false, 0);
    rc = net->group != NULL ? mn_pktpool_init(&net->pool, pkts, frame_max) : -ENOMEM;
    if (rc == 0 && cfg->record_pkts > 0) {
        rc = sim_record_new(net, cfg->record_pkts, cfg->record_snap);
    }
    if (rc < 0) {
        mn_simnet_free(net);
        return rc;
    }
    driver.ctx = net;
    rc = mn_group_drive(net->group, &driver);
    MN_ASSERT(rc == 0);
    *out = net;
    return 0;
}

static void node_free(struct mn_simnet *net, struct simnode *node)
{
    sim_drop_list(net, &node->rx);
    mactab_fini(&node->macs);
    free(node->ports);
    free(node);
}

static void link_free(struct simlink *link)
{
    for (uint32_t dir = 0; dir < 2; dir++) {
        sim_dir_drain(&link->dirs[dir]);
        free(link->dirs[dir].held);
        mn_shaper_fini(&link->dirs[dir].shaper);
    }
    free(link);
}

void mn_simnet_free(struct mn_simnet *net)
{
    if (net == NULL) {
        return;
    }
    (void)mn_simnet_capture_end(net);
    sim_record_free(net);
    sim_calls_free(net);
    for (uint32_t i = 0; i < net->n_links; i++) {
        link_free(net->links[i]);
    }
    for (uint32_t i = 0; i < net->n_nodes; i++) {
        node_free(net, net->nodes[i]);
    }
    /* What overtook is in the event queue only: it goes with the pool. */
    mn_simq_fini(&net->q);
    mn_pktpool_fini(&net->pool);
    mn_check_free(net->check);
    mn_group_free(net->group);
    free(net->nodes);
    free(net->links);
    free(net->only);
    free(net->forced);
    free(net->parts);
    free(net->faults);
    free(net);
}

struct mn_group *mn_simnet_group(struct mn_simnet *net)
{
    return net->group;
}

uint64_t mn_simnet_now(const struct mn_simnet *net)
{
    return sim_now(net);
}

const char *mn_simnet_error(const struct mn_simnet *net)
{
    return net->error;
}

/* ---- nodes --------------------------------------------------------------------------------- */

/* Room for one more pointer in a growing array. */
static int grow_pointers(void ***array, uint32_t n, uint32_t *cap, uint32_t most)
{
    uint32_t more = *cap == 0 ? 16 : 2 * *cap;
    void **grown;

    if (n < *cap) {
        return 0;
    }
    grown = n < most ? realloc(*array, more * sizeof(void *)) : NULL;
    if (grown == NULL) {
        return -ENOMEM;
    }
    *array = grown;
    *cap = more;
    return 0;
}

static int node_check(const struct mn_simnet *net, const char *name, uint32_t mtu,
                      const uint8_t mac[6])
{
    if (name == NULL || name[0] == '\0' || strlen(name) >= NAME_MAX_BYTES || mtu < MTU_MIN ||
        mtu > net->pool.room - MN_ETH_HLEN || mn_eth_is_group(mac)) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < net->n_nodes; i++) {
        const struct simnode *node = net->nodes[i];

        if (memcmp(node->nic.mac, mac, 6) == 0 || strcmp(node->name, name) == 0) {
            return -EEXIST;
        }
    }
    return 0;
}

static int node_new(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t *mac,
                    enum node_kind kind)
{
    static const uint8_t zero[6];
    uint32_t number = net->n_nodes, id = number + 1;
    const uint8_t by_default[6] = {0x02,       0x4d, 0x4e, (uint8_t)(id >> 16), (uint8_t)(id >> 8),
                                   (uint8_t)id};
    struct simnode *node;
    int rc;

    mac = mac != NULL && memcmp(mac, zero, 6) != 0 ? mac : by_default;
    mtu = mtu != 0 ? mtu : MTU_DEFAULT;
    rc = node_check(net, name, mtu, mac);
    if (rc == 0) {
        rc = grow_pointers((void ***)(void *)&net->nodes, number, &net->nodes_cap, NODES_MAX);
    }
    if (rc < 0) {
        return rc;
    }
    node = calloc(1, sizeof(*node));
    if (node == NULL || mn_simq_reserve(&net->q) < 0) {
        free(node);
        return -ENOMEM;
    }
    node->nic = (struct mn_nic){
        .ops = &mn_simnet_nic_ops,
        .caps = {.mtu = mtu,
                 .rx_max_frame = mtu + MN_ETH_HLEN,
                 .tx_max_frame = mtu + MN_ETH_HLEN,
                 .queues = 1},
        .link_up = 1,
        .rx_fd = -1,
    };
    memcpy(node->nic.mac, mac, 6);
    memcpy(node->name, name, strlen(name) + 1);
    node->net = net;
    node->number = node->tree = number;
    node->kind = kind;
    node->timer = (struct mn_simev){.kind = MN_SIMQ_HOST, .what = node};
    rc = sim_record_node(net, node);
    if (rc < 0) {
        mn_simq_unreserve(&net->q);
        free(node);
        return rc;
    }
    net->nodes[net->n_nodes++] = node;
    return (int)number;
}

int mn_simnet_host(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6])
{
    return node_new(net, name, mtu, mac, NODE_HOST);
}

int mn_simnet_switch(struct mn_simnet *net, const char *name)
{
    return node_new(net, name, net->pool.room - MN_ETH_HLEN, NULL, NODE_SWITCH);
}

int mn_simnet_raw(struct mn_simnet *net, const char *name, uint32_t mtu, const uint8_t mac[6])
{
    return node_new(net, name, mtu, mac, NODE_RAW);
}

struct mn_nic *mn_simnet_nic(struct mn_simnet *net, uint32_t node)
{
    struct simnode *n = sim_node(net, node);

    return n != NULL ? &n->nic : NULL;
}

/* ---- links --------------------------------------------------------------------------------- */

/* The switch that stands for the tree that this one is in. */
static struct simnode *tree_root(const struct mn_simnet *net, struct simnode *node)
{
    while (node->tree != node->number) {
        node->tree = net->nodes[node->tree]->tree;
        node = net->nodes[node->tree];
    }
    return node;
}

/* Whether frames are forwarded over it: between switches only where they have no other way, seen
 * from the links that were there before. */
static bool joins(const struct mn_simnet *net, struct simnode *a, struct simnode *b)
{
    if (a->kind != NODE_SWITCH || b->kind != NODE_SWITCH) {
        return true;
    }
    a = tree_root(net, a);
    b = tree_root(net, b);
    if (a == b) {
        return false;
    }
    b->tree = a->number;
    return true;
}

static int port_reserve(struct simnode *node)
{
    struct simport *ports = realloc(node->ports, (node->n_ports + 1) * sizeof(*ports));

    if (ports == NULL) {
        return -ENOMEM;
    }
    node->ports = ports;
    return 0;
}

static int dir_init(struct mn_simnet *net, struct simdir *d, uint32_t link, uint32_t dir,
                    const struct simnode *from, const struct simnode *to,
                    const struct mn_shape *shape)
{
    uint32_t nth = 1;

    for (uint32_t i = 0; i < from->n_ports; i++) {
        const struct simdir *out = from->ports[i].out;

        nth += out->to == to->number;
    }
    d->net = net;
    d->link = link;
    d->dir = dir;
    d->from = from->number;
    d->to = to->number;
    d->to_port = to->n_ports;
    d->ev = (struct mn_simev){.kind = MN_SIMQ_DIR, .what = d};
    if (nth == 1) {
        (void)snprintf(d->name, sizeof(d->name), "%s>%s", from->name, to->name);
    } else {
        (void)snprintf(d->name, sizeof(d->name), "%s>%s#%u", from->name, to->name, nth);
    }
    return mn_shaper_init(&d->shaper, net->seed, d->name, shape);
}

static int link_init(struct mn_simnet *net, struct simlink *link, struct simnode *ends[2],
                     const struct mn_shape *there, const struct mn_shape *back)
{
    int rc = grow_pointers((void ***)(void *)&net->links, net->n_links, &net->links_cap, LINKS_MAX);

    if (rc < 0 || port_reserve(ends[0]) < 0 || port_reserve(ends[1]) < 0) {
        return -ENOMEM;
    }
    rc = dir_init(net, &link->dirs[0], net->n_links, 0, ends[0], ends[1], there);
    if (rc == 0) {
        rc = dir_init(net, &link->dirs[1], net->n_links, 1, ends[1], ends[0], back);
    }
    if (rc == 0) {
        rc = mn_simq_reserve(&net->q);
    }
    if (rc == 0 && mn_simq_reserve(&net->q) < 0) {
        mn_simq_unreserve(&net->q);
        rc = -ENOMEM;
    }
    return rc;
}

int mn_simnet_link(struct mn_simnet *net, uint32_t a, uint32_t b, const struct mn_shape *there,
                   const struct mn_shape *back)
{
    struct simnode *ends[2] = {sim_node(net, a), sim_node(net, b)};
    struct simlink *link;
    int rc;

    back = back != NULL ? back : there;
    if (ends[0] == NULL || ends[1] == NULL || a == b || there == NULL ||
        mn_shape_check(there) != NULL || mn_shape_check(back) != NULL) {
        return -EINVAL;
    }
    link = calloc(1, sizeof(*link));
    if (link == NULL) {
        return -ENOMEM;
    }
    rc = link_init(net, link, ends, there, back);
    if (rc < 0) {
        mn_shaper_fini(&link->dirs[0].shaper);
        mn_shaper_fini(&link->dirs[1].shaper);
        free(link);
        return rc;
    }
    for (uint32_t dir = 0; dir < 2; dir++) {
        link->nodes[dir] = ends[dir]->number;
        ends[dir]->ports[ends[dir]->n_ports++] =
            (struct simport){.link = link, .out = &link->dirs[dir]};
        sim_permit_apply(&link->dirs[dir]);
    }
    link->forwards = joins(net, ends[0], ends[1]);
    net->links[net->n_links] = link;
    return (int)net->n_links++;
}

int sim_dirs(const struct mn_simnet *net, uint32_t link, uint32_t dir, struct simdir *out[2])
{
    if (link >= net->n_links || dir > 2) {
        return -EINVAL;
    }
    if (dir < 2) {
        out[0] = &net->links[link]->dirs[dir];
        return 1;
    }
    out[0] = &net->links[link]->dirs[0];
    out[1] = &net->links[link]->dirs[1];
    return 2;
}

int mn_simnet_shape(struct mn_simnet *net, uint32_t link, uint32_t dir,
                    const struct mn_shape *shape)
{
    struct simdir *dirs[2];
    int n = sim_dirs(net, link, dir, dirs);

    if (n < 0 || mn_shape_check(shape) != NULL) {
        return -EINVAL;
    }
    for (int i = 0; i < n; i++) {
        mn_shaper_set(&dirs[i]->shaper, shape);
        if (shape->blocked == 0) {
            sim_release(dirs[i]);
        }
    }
    return 0;
}

int mn_simnet_get_shape(const struct mn_simnet *net, uint32_t link, uint32_t dir,
                        struct mn_shape *shape)
{
    struct simdir *dirs[2];

    if (dir > 1 || sim_dirs(net, link, dir, dirs) < 0) {
        return -EINVAL;
    }
    *shape = dirs[0]->shaper.shape;
    return 0;
}

const char *mn_simnet_dir_name(const struct mn_simnet *net, uint32_t link, uint32_t dir)
{
    struct simdir *dirs[2];

    return dir > 1 || sim_dirs(net, link, dir, dirs) < 0 ? NULL : dirs[0]->name;
}

int mn_simnet_rule(struct mn_simnet *net, uint32_t link, uint32_t dir, mn_rule_fn fn, void *ctx)
{
    struct simdir *dirs[2];
    int n = sim_dirs(net, link, dir, dirs);

    for (int i = 0; i < n; i++) {
        dirs[i]->rule = fn;
        dirs[i]->rule_ctx = ctx;
    }
    return n < 0 ? n : 0;
}
