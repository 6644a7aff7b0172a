/* SPDX-License-Identifier: MIT */
/* A child of fork cannot use its parent's channel, attaches for itself, and harms nobody. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <machnet.h>

#define IP   "10.0.0.2"
#define PORT 1889

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #cond, strerror(errno));        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void receive(MachnetChannelCtx_t *ctx, const char *text, MachnetFlow_t *from)
{
    char buf[64];
    int n;

    while ((n = machnet_recv(ctx, buf, sizeof(buf), from)) == 0) {
    }
    CHECK(n == (int)strlen(text) && memcmp(buf, text, strlen(text)) == 0);
}

static int child(MachnetChannelCtx_t *parents, MachnetFlow_t parents_flow)
{
    MachnetChannelCtx_t *ctx;
    MachnetFlow_t flow;
    char buf[8];

    CHECK(machnet_send(parents, parents_flow, "x", 1, NULL) == -1 && errno == ECHILD);
    CHECK(machnet_recv(parents, buf, sizeof(buf), &flow) == -1 && errno == ECHILD);
    CHECK(machnet_fd(parents) == -1 && errno == ECHILD);
    CHECK(machnet_detach(parents) == 0);
    CHECK((ctx = machnet_attach()) != NULL);
    CHECK(machnet_connect(ctx, IP, IP, PORT, &flow) == 0);
    CHECK(machnet_send(ctx, flow, "from the child", 14, NULL) == 0);
    receive(ctx, "to the child", &flow);
    CHECK(machnet_detach(ctx) == 0);
    return 0;
}

int main(void)
{
    MachnetChannelCtx_t *server, *client;
    MachnetFlow_t flow, from;
    int status;
    pid_t pid;

    CHECK(machnet_init() == 0);
    CHECK((server = machnet_attach()) != NULL && (client = machnet_attach()) != NULL);
    CHECK(machnet_listen(server, IP, PORT) == 0);
    CHECK(machnet_connect(client, IP, IP, PORT, &flow) == 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        exit(child(client, flow));
    }
    receive(server, "from the child", &from);
    CHECK(machnet_send(server, from, "to the child", 12, NULL) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(machnet_send(client, flow, "still here", 10, NULL) == 0);
    receive(server, "still here", &from);
    CHECK(machnet_detach(client) == 0 && machnet_detach(server) == 0);
    return 0;
}
