/* SPDX-License-Identifier: MIT */
#include "machnet/cli/tcp_msg_gen.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machnet/cli/fault_log.h"
#include "machnet/cli/tcp_frame.h"

/* Up to this many connections are asked directly, which saves a system call each time. */
#define DIRECT_CONNS_MAX 4u
/* How often epoll is asked all the same, so that new connections are not forgotten. */
#define DIRECT_ROUNDS 32u
#define EVENTS_MAX    64
#define ACCEPTS_MAX   64
/* Sends to one peer before the others have their turn. */
#define SENDS_MAX 4

struct conn {
    struct mn_frame_tx tx; /* the slots whose replies are owed */
    struct mn_frame_rx rx;
    struct conn *next;
    struct conn *prev;
    int fd;
    uint32_t armed; /* the events that epoll watches */
    uint32_t peer_ip_be;
    uint16_t peer_port;
    bool peer_done; /* the peer sends no more */
};

struct mn_tcp_server {
    struct mn_msg_stats *stats;
    struct conn *conns;
    uint64_t spin_ns;
    uint32_t conns_open;
    uint32_t msg_size;
    uint32_t direct_round;
    int epoll_fd;
    int listen_fd;
    bool accepting;
    bool verify;
    struct mn_fault_log faults;
    uint8_t out[MN_TCP_CHUNK_BYTES];
    uint8_t in[MN_TCP_CHUNK_BYTES];
};

static bool would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

static void fault_note(struct mn_tcp_server *server, const struct conn *conn,
                       struct mn_msg_fault fault)
{
    if (conn != NULL) {
        fault.peer_ip_be = conn->peer_ip_be;
        fault.peer_port = conn->peer_port;
        if (fault.kind != MN_MSG_FAULT_PAYLOAD) {
            fault.length = conn->rx.length;
            fault.offset = conn->rx.seen;
        }
    }
    mn_fault_log_put(&server->faults, &fault);
}

bool mn_tcp_server_fault(struct mn_tcp_server *server, struct mn_msg_fault *fault)
{
    return mn_fault_log_take(&server->faults, fault);
}

/* --- listening ------------------------------------------------------------------------------- */

static bool listen_watch(struct mn_tcp_server *server, bool on)
{
    struct epoll_event event = {.events = on ? EPOLLIN : 0u, .data = {.ptr = NULL}};
    server->accepting = on;
    return epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, server->listen_fd, &event) == 0;
}

struct mn_tcp_server *mn_tcp_server_new(const struct mn_tcp_config *config,
                                        struct mn_msg_stats *stats)
{
    if (config->msg_size < MN_MSG_HEADER_BYTES || config->msg_size > MN_MSG_MAX_BYTES) {
        errno = EINVAL;
        return NULL;
    }
    struct mn_tcp_server *server = calloc(1, sizeof(*server));
    if (server == NULL)
        return NULL;
    server->stats = stats;
    server->msg_size = config->msg_size;
    server->spin_ns = config->spin_ns;
    server->verify = config->verify;
    server->listen_fd = config->fd;
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = 0, .data = {.ptr = NULL}};
    int flags = fcntl(config->fd, F_GETFL);
    if (server->epoll_fd < 0 || flags < 0 || fcntl(config->fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, config->fd, &event) != 0 ||
        !listen_watch(server, true)) {
        int error = errno;
        mn_tcp_server_free(server);
        errno = error;
        return NULL;
    }
    return server;
}

static void conn_close(struct mn_tcp_server *server, struct conn *conn)
{
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    server->conns_open--;
    close(conn->fd); /* which takes it out of the epoll set too */
    mn_frame_tx_close(&conn->tx);
    free(conn);
}

void mn_tcp_server_free(struct mn_tcp_server *server)
{
    if (server == NULL)
        return;
    while (server->conns != NULL)
        conn_close(server, server->conns);
    if (server->epoll_fd >= 0)
        close(server->epoll_fd);
    free(server);
}

/* A peer that vanished without a word is found out within about a minute and a half. */
static void conn_options(int fd)
{
    static const struct {
        int level;
        int name;
        int value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 60}, {IPPROTO_TCP, TCP_KEEPINTVL, 10},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},
    };
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

/* Takes over `fd`. Returns 0 or negative errno, with `fd` closed. */
static int conn_open(struct mn_tcp_server *server, int fd, const struct sockaddr_in *peer)
{
    struct conn *conn = calloc(1, sizeof(*conn));
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = conn}};
    if (conn == NULL ||
        mn_frame_tx_open(&conn->tx, MN_TCP_SERVER_OWED_MAX, server->msg_size) != 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        int error = conn == NULL || conn->tx.slots == NULL ? ENOMEM : errno;
        if (conn != NULL)
            mn_frame_tx_close(&conn->tx);
        free(conn);
        close(fd);
        return -error;
    }
    conn_options(fd);
    conn->fd = fd;
    conn->armed = EPOLLIN;
    conn->peer_ip_be = peer->sin_addr.s_addr;
    conn->peer_port = ntohs(peer->sin_port);
    conn->rx.verify = server->verify;
    conn->next = server->conns;
    if (conn->next != NULL)
        conn->next->prev = conn;
    server->conns = conn;
    server->conns_open++;
    return 0;
}

/* Linux hands errors of a connection that died in the backlog to accept; they are not ours. */
static bool accept_again(int error)
{
    return error == ECONNABORTED || error == ENETDOWN || error == EPROTO || error == EHOSTUNREACH ||
           error == ENETUNREACH || error == EHOSTDOWN || error == ENONET || error == EOPNOTSUPP ||
           error == ENOPROTOOPT;
}

static void server_accept(struct mn_tcp_server *server)
{
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        struct sockaddr_in peer = {0};
        socklen_t length = sizeof(peer);
        int fd = accept4(server->listen_fd, (struct sockaddr *)&peer, &length,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && would_block(errno))
            return;
        if (fd < 0 && accept_again(errno))
            continue;
        int rc = fd < 0 ? -errno : conn_open(server, fd, &peer);
        if (rc == 0)
            continue;
        /* Out of descriptors or memory: epoll would report the same connection for ever, so the
         * listener rests until the next run. */
        fault_note(server, NULL, (struct mn_msg_fault){.kind = MN_MSG_FAULT_ACCEPT, .error = -rc});
        (void)listen_watch(server, false);
        return;
    }
}

/* --- one connection -------------------------------------------------------------------------- */

static void conn_payload_fault(struct mn_tcp_server *server, const struct conn *conn)
{
    server->stats->payload_faults++;
    fault_note(server, conn,
               (struct mn_msg_fault){
                   .kind = MN_MSG_FAULT_PAYLOAD,
                   .length = conn->rx.length,
                   .slot = conn->rx.slot,
                   .offset = conn->rx.wrong_at,
                   .expected = (uint8_t)conn->rx.wrong_at,
                   .got = conn->rx.wrong_got,
               });
}

/* Reads once, no more than there is room to owe answers for. Returns bytes read, or negative errno
 * when the connection is to be closed: -EPROTO for what the peer sent. */
static int64_t conn_read(struct mn_tcp_server *server, struct conn *conn)
{
    uint64_t room = mn_frame_rx_limit(&conn->rx, mn_frame_tx_room(&conn->tx));
    if (room == 0 || conn->peer_done)
        return 0;
    if (room > sizeof(server->in))
        room = sizeof(server->in);
    ssize_t got = recv(conn->fd, server->in, room, MSG_DONTWAIT);
    if (got < 0 && would_block(errno))
        return 0;
    if (got < 0) {
        int error = errno;
        fault_note(server, conn,
                   (struct mn_msg_fault){.kind = MN_MSG_FAULT_SYSTEM, .error = error});
        return -error;
    }
    if (got == 0) {
        conn->peer_done = true;
        if (conn->rx.seen != 0)
            fault_note(server, conn, (struct mn_msg_fault){.kind = MN_MSG_FAULT_TORN});
        return 1;
    }
    const uint8_t *at = server->in;
    const uint8_t *end = at + got;
    int rc;
    while ((rc = mn_frame_rx_next(&conn->rx, &at, end)) == 1) {
        mn_frame_tx_push(&conn->tx, conn->rx.slot);
        server->stats->rx_msgs++;
        server->stats->rx_bytes += conn->rx.length;
        if (conn->rx.wrong_at != MN_MSG_MATCH)
            conn_payload_fault(server, conn);
    }
    if (rc < 0) {
        fault_note(server, conn, (struct mn_msg_fault){.kind = MN_MSG_FAULT_LENGTH});
        return -EPROTO;
    }
    return got;
}

/* Answers everything that is owed, as far as the socket takes it. Returns bytes sent, or -1 when
 * the connection is to be closed. */
static int64_t conn_write(struct mn_tcp_server *server, struct conn *conn)
{
    int64_t total = 0;
    for (int i = 0; i < SENDS_MAX && conn->tx.count > 0; i++) {
        uint32_t ready = mn_frame_tx_copy(&conn->tx, server->out, sizeof(server->out));
        ssize_t sent = send(conn->fd, server->out, ready, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && would_block(errno))
            break;
        if (sent < 0) {
            fault_note(server, conn,
                       (struct mn_msg_fault){.kind = MN_MSG_FAULT_SYSTEM, .error = errno});
            return -1;
        }
        uint32_t frames = mn_frame_tx_consume(&conn->tx, (uint32_t)sent);
        server->stats->tx_msgs += frames;
        server->stats->tx_bytes += (uint64_t)frames * server->msg_size;
        total += sent;
        if (sent < (ssize_t)ready)
            break;
    }
    return total;
}

static void conn_arm(struct mn_tcp_server *server, struct conn *conn)
{
    bool reads = !conn->peer_done && mn_frame_tx_room(&conn->tx) > 0;
    uint32_t events = (reads ? EPOLLIN : 0u) | (conn->tx.count > 0 ? EPOLLOUT : 0u);
    if (events == conn->armed)
        return;
    struct epoll_event event = {.events = events, .data = {.ptr = conn}};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event) == 0)
        conn->armed = events;
}

/* One turn of a connection, which may end it. Returns whether there was anything to do. */
static bool conn_turn(struct mn_tcp_server *server, struct conn *conn)
{
    int64_t got = conn_read(server, conn);
    /* A bad length ends the connection, but what came before it is answered. */
    int64_t sent = got >= 0 || got == -EPROTO ? conn_write(server, conn) : 0;
    bool finished = conn->peer_done && conn->tx.count == 0;
    if (got < 0 || sent < 0 || finished) {
        conn_close(server, conn);
        return true;
    }
    conn_arm(server, conn);
    return got > 0 || sent > 0;
}

/* --- the loop -------------------------------------------------------------------------------- */

static bool turn_direct(struct mn_tcp_server *server)
{
    bool worked = false;
    struct conn *next;
    for (struct conn *conn = server->conns; conn != NULL; conn = next) {
        next = conn->next;
        worked |= conn_turn(server, conn);
    }
    return worked;
}

/* Returns whether there was anything to do, or negative errno. */
static int turn_epoll(struct mn_tcp_server *server, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int ready = epoll_wait(server->epoll_fd, events, EVENTS_MAX, timeout_ms);
    if (ready < 0)
        return -errno;
    for (int i = 0; i < ready; i++) {
        if (events[i].data.ptr == NULL)
            server_accept(server);
        else
            (void)conn_turn(server, events[i].data.ptr);
    }
    return ready > 0;
}

static int server_turn(struct mn_tcp_server *server)
{
    bool direct = server->conns_open > 0 && server->conns_open <= DIRECT_CONNS_MAX &&
                  ++server->direct_round % DIRECT_ROUNDS != 0;
    return direct ? turn_direct(server) : turn_epoll(server, 0);
}

int mn_tcp_server_run(struct mn_tcp_server *server, uint64_t until_ns, const volatile int *stop)
{
    if (!server->accepting && !listen_watch(server, true))
        return -errno;
    uint64_t busy_at_ns = mn_msg_now_ns();
    for (;;) {
        int rc = server_turn(server);
        if (rc < 0)
            return rc == -EINTR ? 0 : rc;
        uint64_t now_ns = mn_msg_now_ns();
        if (now_ns >= until_ns || (stop != NULL && *stop != 0))
            return 0;
        if (rc == 0 && now_ns - busy_at_ns >= server->spin_ns) {
            /* Rounded up: a wait of no time at all would be spinning again. */
            uint64_t wait_ms = (until_ns - now_ns + 999999u) / 1000000u;
            rc = turn_epoll(server, wait_ms < 1000 ? (int)wait_ms : 1000);
            if (rc < 0)
                return rc == -EINTR ? 0 : rc;
            now_ns = mn_msg_now_ns();
        } else if (rc == 0) {
            mn_msg_relax(server->spin_ns);
        }
        if (rc > 0)
            busy_at_ns = now_ns;
    }
}

uint64_t mn_tcp_server_faults(const struct mn_tcp_server *server)
{
    return server->faults.total;
}

uint64_t mn_tcp_server_untold(struct mn_tcp_server *server)
{
    return mn_fault_log_untold(&server->faults);
}

uint32_t mn_tcp_server_open_conns(const struct mn_tcp_server *server)
{
    return server->conns_open;
}
