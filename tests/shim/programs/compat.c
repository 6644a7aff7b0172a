/* SPDX-License-Identifier: MIT */
/*
 * A program as it was written for the original library: it declares what it uses by itself, in the
 * signatures of the main branch, or with TCP_BRANCH of the other one. It goes through the interface
 * with two channels, then serves a client until that says "done".
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

struct MachnetFlow {
    uint32_t src_ip, dst_ip;
    uint16_t src_port, dst_port;
};
struct MachnetIovec {
    void *base;
    size_t len;
};
struct MachnetMsgHdr {
    uint32_t msg_size;
    struct MachnetFlow flow_info;
    struct MachnetIovec *msg_iov;
    size_t msg_iovlen;
    uint16_t flags;
};

extern int g_ctrl_socket;
extern unsigned char g_app_uuid[16];
extern char g_app_uuid_str[37];
int machnet_init(void);
void *machnet_attach(void);
void *machnet_bind(int fd, size_t *size);
void machnet_detach(void *ctx);
/* One argument more than main has, to be ignored there. */
int machnet_listen(void *ctx, const char *ip, uint16_t port, int protocol);
int machnet_connect(void *ctx, const char *local, const char *remote, uint16_t port,
                    struct MachnetFlow *flow, int protocol);
int machnet_send(const void *ctx, struct MachnetFlow flow, const void *buf, size_t len);
int machnet_sendmsg(const void *ctx, const struct MachnetMsgHdr *msg);
int machnet_sendmmsg(const void *ctx, const struct MachnetMsgHdr *msgs, int n);
ssize_t machnet_recv(const void *ctx, void *buf, size_t len, struct MachnetFlow *flow);
int machnet_recvmsg(const void *ctx, struct MachnetMsgHdr *msg);

#ifdef TCP_BRANCH
#define PROTOCOL 1
#else
#define PROTOCOL 77
#endif
#define IP   "10.0.0.2"
#define PORT 1888
#define HOST 0x0a000002u

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static char buf[1 << 16];

static ssize_t wait_message(const void *ctx, size_t size, struct MachnetFlow *flow)
{
    ssize_t n;

    while ((n = machnet_recv(ctx, buf, size, flow)) == 0) {
    }
    return n;
}

static void check_pieces(void *server, void *client, struct MachnetFlow flow)
{
    char one[2], two[8];
    struct MachnetIovec out[] = {{"pie", 3}, {"ces", 3}};
    struct MachnetIovec in[] = {{one, sizeof(one)}, {NULL, 0}, {two, sizeof(two)}};
    struct MachnetMsgHdr msgs[2] = {{6, flow, out, 2, 0x80}, {6, flow, out, 2, 0}};
    struct MachnetMsgHdr got = {0, {0, 0, 0, 0}, in, 3, 0};
    int rc;

    CHECK(machnet_sendmsg(client, &msgs[0]) == 0);
    msgs[1].flow_info.src_port ^= 1; /* no such flow */
    CHECK(machnet_sendmmsg(client, msgs, 2) == 1);
    for (int i = 0; i < 2; i++) {
        while ((rc = machnet_recvmsg(server, &got)) == 0) {
        }
        CHECK(rc == 1 && got.msg_size == 6 && got.flow_info.src_port == flow.src_port);
        CHECK(memcmp(one, "pi", 2) == 0 && memcmp(two, "eces", 4) == 0);
    }
    got.msg_iovlen = 1;
    CHECK(machnet_sendmsg(client, &msgs[0]) == 0);
    while ((rc = machnet_recvmsg(server, &got)) == 0) {
    }
    CHECK(rc == -1);
    CHECK(machnet_recvmsg(server, &got) == 0); /* it is gone */
    msgs[0].msg_size = 5;
    CHECK(machnet_sendmsg(client, &msgs[0]) == -1);
}

static void check_messages(void *server, void *client, struct MachnetFlow flow)
{
    struct MachnetFlow from = {1, 2, 3, 4};
    char *big = malloc((8u << 20) + 1);

    CHECK(big != NULL);
    CHECK(machnet_send(client, flow, "", 0) == -1);
    CHECK(machnet_send(client, flow, big, (8u << 20) + 1) == -1);
    free(big);
    CHECK(machnet_recv(server, buf, sizeof(buf), &from) == 0);
    CHECK(machnet_send(client, flow, "too long", 8) == 0);
    CHECK(wait_message(server, 7, &from) == -1);
    CHECK(from.src_ip == 1 && from.dst_port == 4); /* untouched */
    CHECK(machnet_send(client, flow, "question", 8) == 0);
    CHECK(wait_message(server, sizeof(buf), &from) == 8 && memcmp(buf, "question", 8) == 0);
    CHECK(from.src_ip == HOST && from.dst_ip == HOST);
    CHECK(from.src_port == flow.src_port && from.dst_port == PORT);
    from = (struct MachnetFlow){from.dst_ip, from.src_ip, from.dst_port, from.src_port};
    machnet_detach(server); /* means nothing */
    CHECK(machnet_send(server, from, "answer", 6) == 0);
    CHECK(wait_message(client, sizeof(buf), &from) == 6);
}

int main(void)
{
    struct MachnetFlow flow;
    void *server, *client;
    size_t size = 0;
    ssize_t n;

    CHECK(g_ctrl_socket == -1 && g_app_uuid_str[0] == '\0');
    CHECK(machnet_init() == 0 && machnet_init() == 0);
    CHECK(g_ctrl_socket >= 0 && strlen(g_app_uuid_str) == 36);
    snprintf(buf, sizeof(buf), "%02x%02x%02x%02x-", g_app_uuid[0], g_app_uuid[1], g_app_uuid[2],
             g_app_uuid[3]);
    CHECK(strncmp(buf, g_app_uuid_str, 9) == 0);
    CHECK(machnet_bind(-1, &size) == NULL);
    server = machnet_attach();
    client = machnet_attach();
    CHECK(server != NULL && client != NULL && server != client);
    CHECK(machnet_listen(server, "nowhere", PORT, PROTOCOL) == -22);
    CHECK(machnet_listen(server, "10.9.9.9", PORT, PROTOCOL) == -1);
    CHECK(machnet_listen(server, IP, PORT, PROTOCOL) == 0);
    CHECK(machnet_listen(client, IP, PORT, PROTOCOL) == -1);
    CHECK(machnet_connect(client, IP, IP, PORT + 1, &flow, PROTOCOL) == -1);
    CHECK(machnet_connect(client, IP, IP, PORT, &flow, PROTOCOL) == 0);
    CHECK(flow.src_ip == HOST && flow.dst_ip == HOST && flow.dst_port == PORT);
    check_messages(server, client, flow);
    check_pieces(server, client, flow);
    fprintf(stderr, "serving\n");
    do {
        n = wait_message(server, sizeof(buf), &flow);
        CHECK(n > 0);
        printf("%.*s\n", (int)n, buf);
    } while (n != 4 || memcmp(buf, "done", 4) != 0);
    return 0;
}
