/* SPDX-License-Identifier: MIT */
#include "linknic_sock.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#define RETRY_NS     20000000L
#define BACKLOG      4
#define BUFFER_BYTES (4 << 20)

static void set_fd(int *fd, int value)
{
    if (*fd >= 0) {
        (void)close(*fd);
    }
    *fd = value;
}

/* A descriptor that is closed leaves the epoll set by itself. */
static void watch(const struct mn_linknic_sock *s, int op, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    (void)epoll_ctl(s->epoll_fd, op, fd, &event);
}

static void try_again_later(const struct mn_linknic_sock *s)
{
    struct itimerspec at = {.it_value.tv_nsec = RETRY_NS};

    (void)timerfd_settime(s->timer_fd, 0, &at, NULL);
}

static int new_socket(const struct mn_linknic_sock *s, struct sockaddr_un *addr)
{
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(addr->sun_path, s->path, strlen(s->path));
    return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* The lock, or -EWOULDBLOCK when somebody else has it. */
static int take_lock(struct mn_linknic_sock *s)
{
    struct stat mine, there;
    int fd = open(s->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return -errno;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int error = errno;

        (void)close(fd);
        return -error;
    }
    /* Its last holder may have taken the file away between our two calls: that lock locks nothing.
     */
    if (fstat(fd, &mine) != 0 || stat(s->lock_path, &there) != 0 || mine.st_ino != there.st_ino) {
        (void)close(fd);
        return -EWOULDBLOCK;
    }
    s->lock_fd = fd;
    return 0;
}

static void drop_lock(struct mn_linknic_sock *s)
{
    if (s->lock_fd >= 0) {
        (void)unlink(s->lock_path);
        set_fd(&s->lock_fd, -1);
    }
}

static int start_listening(struct mn_linknic_sock *s)
{
    struct sockaddr_un addr;
    struct stat there;
    int fd, rc = take_lock(s);

    if (rc != 0) {
        return rc;
    }
    /* Whoever made it is gone, or would have the lock. */
    if (lstat(s->path, &there) == 0) {
        if (!S_ISSOCK(there.st_mode)) {
            drop_lock(s);
            return -EEXIST;
        }
        (void)unlink(s->path);
    }
    fd = new_socket(s, &addr);
    /* The mode of the socket is that of its file: who else may connect is up to who opens the link.
     */
    if (fd < 0 || fchmod(fd, 0600) != 0 ||
        bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0 || listen(fd, BACKLOG) != 0) {
        rc = -errno;
        set_fd(&fd, -1);
        drop_lock(s);
        return rc;
    }
    s->listen_fd = fd;
    watch(s, EPOLL_CTL_ADD, fd);
    return 0;
}

static void connected(struct mn_linknic_sock *s, int fd)
{
    int bytes = BUFFER_BYTES;

    /* As much as the system allows. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    s->conn_fd = fd;
    watch(s, EPOLL_CTL_ADD, fd);
    if (s->listen_fd >= 0) {
        watch(s, EPOLL_CTL_DEL, s->listen_fd);
    }
}

/* 1: connected, 0: listening, or a negative errno. */
static int connect_or_listen(struct mn_linknic_sock *s)
{
    struct sockaddr_un addr;
    int error, fd = new_socket(s, &addr);

    if (fd < 0) {
        return -errno;
    }
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0) {
        connected(s, fd);
        return 1;
    }
    error = errno;
    (void)close(fd);
    /* ENOTSOCK and EPROTOTYPE, by the way, mean that the file is something else. */
    return error == ENOENT || error == ECONNREFUSED ? start_listening(s) : -error;
}

bool mn_linknic_sock_seek(struct mn_linknic_sock *s)
{
    uint64_t ticks;
    int rc;

    if (s->listen_fd >= 0) {
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            connected(s, fd);
        }
        return fd >= 0;
    }
    if (read(s->timer_fd, &ticks, sizeof(ticks)) < 0) {
        return false;
    }
    rc = connect_or_listen(s);
    if (rc < 0) {
        s->last_errno = -rc;
        try_again_later(s);
    }
    return rc > 0;
}

void mn_linknic_sock_lost(struct mn_linknic_sock *s)
{
    set_fd(&s->conn_fd, -1);
    if (s->listen_fd >= 0) {
        watch(s, EPOLL_CTL_ADD, s->listen_fd);
    } else {
        try_again_later(s);
    }
}

int mn_linknic_sock_open(struct mn_linknic_sock *s, const char *path)
{
    int rc;

    *s = (struct mn_linknic_sock){
        .conn_fd = -1, .listen_fd = -1, .lock_fd = -1, .timer_fd = -1, .epoll_fd = -1};
    if (path[0] == '\0' || strlen(path) > MN_LINKNIC_PATH_MAX) {
        return -ENAMETOOLONG;
    }
    memcpy(s->path, path, strlen(path));
    (void)snprintf(s->lock_path, sizeof(s->lock_path), "%s.lock", path);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (s->epoll_fd < 0 || s->timer_fd < 0) {
        return -errno;
    }
    watch(s, EPOLL_CTL_ADD, s->timer_fd);
    rc = connect_or_listen(s);
    if (rc == -EAGAIN) { /* who listens there is only just about to */
        try_again_later(s);
        return 0;
    }
    return rc < 0 ? rc : 0;
}

void mn_linknic_sock_close(struct mn_linknic_sock *s)
{
    set_fd(&s->conn_fd, -1);
    if (s->listen_fd >= 0) {
        (void)unlink(s->path);
        set_fd(&s->listen_fd, -1);
    }
    drop_lock(s);
    set_fd(&s->timer_fd, -1);
    set_fd(&s->epoll_fd, -1);
}
