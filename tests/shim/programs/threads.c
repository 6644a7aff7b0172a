/* SPDX-License-Identifier: MIT */
/* Two threads at once on one channel, which a checked build of the library refuses and says so. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include <machnet.h>

static void *wait_there(void *ctx)
{
    char buf[8];
    struct MachnetIovec piece = {buf, sizeof(buf)};
    struct MachnetMsgHdr msg;

    memset(&msg, 0, sizeof(msg));
    msg.msg_iov = &piece;
    msg.msg_iovlen = 1;
    msg.flags = MACHNET_NO_EINTR;
    /* The other thread may be the one that is in it. */
    while (machnet_recv_wait((MachnetChannelCtx_t *)ctx, &msg, 1000000) == -1 && errno == EBUSY) {
        sched_yield();
    }
    return NULL;
}

int main(void)
{
    MachnetChannelCtx_t *ctx;
    pthread_t thread;
    int rc, why = 0;

    if (machnet_init() != 0 || (ctx = machnet_attach()) == NULL ||
        pthread_create(&thread, NULL, wait_there, ctx) != 0) {
        return 1;
    }
    do {
        sched_yield();
        rc = machnet_set_protocol(ctx, MACHNET_PROTO_TCP);
        why = errno;
    } while (rc == 0);
    pthread_join(thread, NULL);
    return rc == -1 && why == EBUSY && machnet_detach(ctx) == 0 ? 0 : 2;
}
