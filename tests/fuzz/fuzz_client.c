/* SPDX-License-Identifier: MIT */
/*
 * The C library against a sidecar that is hostile or broken. fuzz_client: the controller says what
 * the input wants, of any length, with any descriptors. fuzz_lanes: it is honest, and the engines
 * of its channels, which have several lanes, are not. No call may crash, write beyond what it was
 * given, take longer than it says, or leave a descriptor open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "fz_sidecar.h"
#include "machnet/shim/shim.h"

#define OPS_MAX    200u
#define CHANS      3u
#define FLOWS      8u
#define FDS_LOOKED 64
/* Two connections, each with a hello, an attach and its undoing, of 5 s; a connect of 10. */
#define CALL_S 40u

struct fuzz {
    struct fz_in in;
    MachnetChannelCtx_t *chans[CHANS];
    struct fz_mem *mems[CHANS];
    MachnetFlow_t flows[FLOWS];
    uint32_t n_flows;
};

static uint8_t sent[4096];

static void remember(struct fuzz *z, const MachnetFlow_t *flow)
{
    z->flows[z->n_flows++ % FLOWS] = *flow;
}

/* A failed call says why. */
static void failed(int64_t rc)
{
    FZ_CHECK(rc >= -1 && (rc >= 0 || (errno > 0 && errno < 4096)));
}

static void op_attach(struct fuzz *z, uint32_t i)
{
    if (z->chans[i] != NULL) {
        failed(machnet_detach(z->chans[i]));
        z->chans[i] = NULL;
        z->mems[i] = NULL;
        return;
    }
    z->chans[i] = machnet_attach();
    failed(z->chans[i] == NULL ? -1 : 0);
    if (z->chans[i] != NULL && fz_sidecar.n_mems > 0) {
        z->mems[i] = &fz_sidecar.mems[fz_sidecar.n_mems - 1];
    }
}

static void op_listen(MachnetChannelCtx_t *c, uint8_t a)
{
    static const char *const ips[] = {"0.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"};
    uint16_t port = (uint16_t)(1000 + (a >> 4 & 3));

    if ((a & 0x80) != 0) {
        failed(machnet_unlisten(c, ips[a & 3], port));
    } else {
        failed(machnet_listen_proto(c, ips[a & 3], port, a >> 2 & 3));
    }
}

static void op_connect(struct fuzz *z, MachnetChannelCtx_t *c, uint8_t a)
{
    MachnetFlow_t flow;
    int rc = machnet_connect_proto(c, (a & 1) != 0 ? "10.0.0.1" : "0.0.0.0", "10.0.0.3", 2000,
                                   &flow, a >> 1 & 3);

    failed(rc);
    if (rc == 0) {
        remember(z, &flow);
    }
}

static void op_send(struct fuzz *z, MachnetChannelCtx_t *c, uint8_t a, uint32_t len)
{
    MachnetIovec_t iov[3] = {{sent, len / 2}, {NULL, 0}, {sent, len - len / 2}};
    MachnetMsgHdr_t hdr = {
        .msg_size = len, .flow_info = z->flows[a % FLOWS], .msg_iov = iov, .msg_iovlen = 3};

    if ((a & 0x80) != 0) {
        failed(machnet_sendmmsg(c, &hdr, 1));
    } else {
        int rc = machnet_send(c, hdr.flow_info, sent, len, NULL);

        failed(rc);
        FZ_CHECK(rc <= (int)len);
    }
}

/* Into memory of exactly the size that is given. */
static void op_recv(struct fuzz *z, MachnetChannelCtx_t *c, uint32_t size)
{
    uint8_t *buf = malloc(size);
    MachnetFlow_t flow;
    int rc = machnet_recv(c, buf, size, &flow);

    failed(rc);
    FZ_CHECK(rc <= (int)size);
    if (flow.src_ip != 0) {
        remember(z, &flow);
    }
    free(buf);
}

static void op_recvmsg(struct fuzz *z, MachnetChannelCtx_t *c, uint8_t a, uint32_t size)
{
    uint8_t *one = malloc(size), *two = malloc(size);
    MachnetIovec_t iov[2] = {{one, size}, {two, size}};
    MachnetMsgHdr_t hdr = {.msg_iov = iov, .msg_iovlen = 1 + (a & 1)};
    int rc = (a & 2) != 0 ? machnet_recv_wait(c, &hdr, (int64_t)(a >> 2) * 1000)
                          : machnet_recvmsg(c, &hdr);

    failed(rc);
    FZ_CHECK(rc <= 1 && (rc < 1 || hdr.msg_size <= size * (1 + (a & 1))));
    if (rc == 1) {
        remember(z, &hdr.flow_info);
    }
    free(one);
    free(two);
}

static void op_channel(struct fuzz *z, MachnetChannelCtx_t *c, uint8_t what)
{
    uint8_t a = fz_u8(&z->in);

    switch (what) {
    case 0:
        op_listen(c, a);
        break;
    case 1:
        op_connect(z, c, a);
        break;
    case 2:
    case 3:
        op_send(z, c, a, mn_min_u32(fz_len(&z->in), sizeof(sent)));
        break;
    case 4:
    case 5:
    case 6:
        op_recv(z, c, mn_min_u32(fz_len(&z->in), sizeof(sent)));
        break;
    case 7:
        op_recvmsg(z, c, a, mn_min_u32(fz_len(&z->in), sizeof(sent)));
        break;
    case 8:
        failed(machnet_close(c, z->flows[a % FLOWS]));
        break;
    case 9:
        failed(machnet_flow_error(c, z->flows[a % FLOWS]));
        break;
    default:
        failed(machnet_fd(c));
        break;
    }
}

static void op(struct fuzz *z)
{
    uint8_t b = fz_u8(&z->in);
    uint32_t i = (b >> 6) % CHANS;

    fz_sidecar_call(CALL_S);
    if ((b & 31) < 11) {
        if (z->chans[i] != NULL) {
            op_channel(z, z->chans[i], b & 31);
        }
    } else if ((b & 31) == 11) {
        op_attach(z, i);
    } else if ((b & 31) == 12) {
        failed(machnet_init());
    } else if (z->mems[i] != NULL) {
        fz_engines_act(z->mems[i], &z->in);
    }
}

/* But the connection that the library keeps: the next input begins with finding it dead. */
static uint32_t open_fds(void)
{
    uint32_t n = mn_shim_socket() >= 0 ? UINT32_MAX : 0;

    for (int fd = 0; fd < FDS_LOOKED; fd++) {
        n += fcntl(fd, F_GETFD) >= 0;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz z = {.in = {data, data + size}};
    uint32_t fds = open_fds();

    (void)setenv("MACHNET_SOCKET", "the-harness", 1);
    fz_sidecar_begin(&z.in, !FZ_CLIENT);
    fz_sidecar_call(CALL_S);
    failed(machnet_init());
    for (uint32_t i = 0; i < (FZ_CLIENT ? 1 : 2); i++) {
        fz_sidecar_call(CALL_S);
        op_attach(&z, i);
    }
    for (uint32_t n = 0; n < OPS_MAX && fz_more(&z.in); n++) {
        op(&z);
    }
    z.in.p = z.in.end;
    for (uint32_t i = 0; i < CHANS; i++) {
        fz_sidecar_call(CALL_S);
        if (z.chans[i] != NULL) {
            op_attach(&z, i);
        }
    }
    fz_sidecar_end();
    FZ_CHECK(open_fds() == fds);
    return 0;
}
