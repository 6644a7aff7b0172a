/* SPDX-License-Identifier: MIT */
/* Sends COUNT numbered messages of SIZE bytes and is gone: burst COUNT SIZE exit|kill|abort. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <machnet.h>

int main(int argc, char **argv)
{
    uint32_t count = (uint32_t)atoi(argv[1]);
    size_t size = (size_t)atoi(argv[2]);
    char *data = (char *)calloc(1, size);
    MachnetChannelCtx_t *ctx;
    MachnetFlow_t flow;

    if (argc != 4 || machnet_init() != 0 || (ctx = machnet_attach()) == NULL ||
        machnet_connect(ctx, "10.0.0.2", "10.0.0.2", 888, &flow) != 0) {
        return 1;
    }
    for (uint32_t i = 0; i < count; i++) {
        memcpy(data, &i, sizeof(i));
        while (machnet_send(ctx, flow, data, size, NULL) != 0) {
            if (errno != EAGAIN) {
                return 2;
            }
        }
    }
    if (strcmp(argv[3], "kill") == 0) {
        kill(getpid(), SIGKILL);
    }
    _exit(0);
}
