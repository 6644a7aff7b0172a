/* SPDX-License-Identifier: MIT */
/*
 * A server waits for one message and prints it; with --remote, a client sends "Hello World!".
 *
 *     cc hello_world.c -o hello_world $(pkg-config --cflags --libs machnet)
 *     ./hello_world --local 10.0.0.2
 *     ./hello_world --local 10.0.0.3 --remote 10.0.0.2
 *
 * It is C and C++.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <machnet.h>

#define DEFAULT_PORT 31580

struct options {
    const char *local;
    const char *remote;
    uint16_t port;
    int protocol; /* -1: what MACHNET_PROTOCOL says, else udp */
};

static int usage(FILE *to)
{
    fprintf(
        to,
        "usage: hello_world --local IP [--remote IP] [--port N] [--protocol udp|tcp]\n\n"
        "  --local IP      the address of the machnet sidecar here\n"
        "  --remote IP     send \"Hello World!\" to the server there; without it, be the server\n"
        "  --port N        the server's port (default %d)\n"
        "  --protocol P    udp or tcp (default: MACHNET_PROTOCOL, else udp)\n",
        DEFAULT_PORT);
    return to == stdout ? 0 : 2;
}

static int failed(const char *what)
{
    fprintf(stderr, "hello_world: %s: %s\n", what,
            errno == EPIPE ? "the sidecar has ended" : strerror(errno));
    return 1;
}

static void print_end(const char *what, uint32_t ip, uint16_t port)
{
    fprintf(stderr, "%s %u.%u.%u.%u:%u\n", what, (unsigned)(ip >> 24), (unsigned)(ip >> 16 & 255),
            (unsigned)(ip >> 8 & 255), (unsigned)(ip & 255), (unsigned)port);
}

static int serve(MachnetChannelCtx_t *ctx, const struct options *o)
{
    char text[1024];
    struct MachnetIovec piece = {text, sizeof(text)};
    struct MachnetMsgHdr msg;

    if (machnet_listen(ctx, o->local, o->port) != 0) {
        return failed("machnet_listen");
    }
    fprintf(stderr, "listening on %s:%u\n", o->local, (unsigned)o->port);
    memset(&msg, 0, sizeof(msg));
    msg.msg_iov = &piece;
    msg.msg_iovlen = 1;
    if (machnet_recv_wait(ctx, &msg, -1) != 1) {
        return failed("machnet_recv_wait");
    }
    print_end("received from", msg.flow_info.src_ip, msg.flow_info.src_port);
    printf("%.*s\n", (int)msg.msg_size, text);
    return 0;
}

static int greet(MachnetChannelCtx_t *ctx, const struct options *o)
{
    static const char text[] = "Hello World!";
    MachnetFlow_t flow;

    if (machnet_connect(ctx, o->local, o->remote, o->port, &flow) != 0) {
        return failed("machnet_connect");
    }
    if (machnet_send(ctx, flow, text, strlen(text), NULL) != 0) {
        return failed("machnet_send");
    }
    /* It may end at once: what was sent still goes out. */
    print_end("sent to", flow.dst_ip, flow.dst_port);
    return 0;
}

static int is_address(const char *name, const char *text)
{
    struct in_addr ip;

    if (inet_pton(AF_INET, text, &ip) != 1) {
        fprintf(stderr, "hello_world: --%s must be an IPv4 address such as 10.0.0.2, not '%s'\n",
                name, text);
        return 0;
    }
    return 1;
}

/* 0; else the exit status, which for --help is to be 0: then it is -1. */
static int parse(int argc, char **argv, struct options *o)
{
    static const struct option names[] = {
        {"local", required_argument, NULL, 'l'}, {"remote", required_argument, NULL, 'r'},
        {"port", required_argument, NULL, 'p'},  {"protocol", required_argument, NULL, 'P'},
        {"help", no_argument, NULL, 'h'},        {NULL, 0, NULL, 0},
    };
    char *end;
    long port;
    int c;

    while ((c = getopt_long(argc, argv, "h", names, NULL)) != -1) {
        switch (c) {
        case 'l':
            o->local = optarg;
            break;
        case 'r':
            o->remote = optarg;
            break;
        case 'p':
            port = strtol(optarg, &end, 10);
            if (*optarg == '\0' || *end != '\0' || port < 1 || port > 65535) {
                fprintf(stderr, "hello_world: --port must be a number from 1 to 65535, not '%s'\n",
                        optarg);
                return 2;
            }
            o->port = (uint16_t)port;
            break;
        case 'P':
            if (strcmp(optarg, "udp") != 0 && strcmp(optarg, "tcp") != 0) {
                fprintf(stderr, "hello_world: --protocol must be udp or tcp, not '%s'\n", optarg);
                return 2;
            }
            o->protocol = strcmp(optarg, "udp") == 0 ? MACHNET_PROTO_UDP : MACHNET_PROTO_TCP;
            break;
        case 'h':
            (void)usage(stdout);
            return -1;
        default:
            return usage(stderr);
        }
    }
    if (o->local == NULL || optind != argc) {
        return usage(stderr);
    }
    if (!is_address("local", o->local) || (o->remote != NULL && !is_address("remote", o->remote))) {
        return 2;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct options o = {NULL, NULL, DEFAULT_PORT, -1};
    MachnetChannelCtx_t *ctx;
    int status = parse(argc, argv, &o);

    if (status != 0) {
        return status < 0 ? 0 : status;
    }
    if (machnet_init() != 0) {
        return failed("no machnet sidecar (MACHNET_SOCKET says where): machnet_init");
    }
    ctx = machnet_attach();
    if (ctx == NULL) {
        return failed("machnet_attach");
    }
    if (o.protocol >= 0 && machnet_set_protocol(ctx, o.protocol) != 0) {
        return failed("machnet_set_protocol");
    }
    return o.remote == NULL ? serve(ctx, &o) : greet(ctx, &o);
}
