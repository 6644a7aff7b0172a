/* SPDX-License-Identifier: MIT */
/* The socket below a link: finding the other end, losing it, finding the next; for link.c alone. */
#ifndef MN_SIM_LINKNIC_SOCK_H
#define MN_SIM_LINKNIC_SOCK_H

#include "linknic.h"

struct mn_linknic_sock {
    char path[MN_LINKNIC_PATH_MAX + 1];
    char lock_path[MN_LINKNIC_PATH_MAX + 6];
    int conn_fd;   /* to the other end, or -1 */
    int listen_fd; /* -1: somebody else listens */
    int lock_fd;   /* whoever holds the lock may replace the socket's file; -1: not ours */
    int timer_fd;  /* says when to try again, with neither conn_fd nor listen_fd */
    int epoll_fd;  /* readable when any of those wants attention; stays the same */
    int last_errno;
};

/* 0, or a negative errno; either way mn_linknic_sock_close is to be called. */
int mn_linknic_sock_open(struct mn_linknic_sock *s, const char *path);
void mn_linknic_sock_close(struct mn_linknic_sock *s);
/* Looks for the other end, which was not there: true when conn_fd is a new connection. */
bool mn_linknic_sock_seek(struct mn_linknic_sock *s);
/* The connection is of no more use. */
void mn_linknic_sock_lost(struct mn_linknic_sock *s);

#endif
