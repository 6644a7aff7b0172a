/* SPDX-License-Identifier: MIT */
/* Small wrappers of system calls, private to the host. */
#ifndef MN_HOST_OS_H
#define MN_HOST_OS_H

#include <poll.h>

#include "machnet/stack/core/base.h"

/* Zeroed memory that takes no room before it is touched; NULL when there is none. */
void *mn_os_map(uint64_t bytes);
void mn_os_unmap(void *mem, uint64_t bytes);

/* A non-blocking counter descriptor, or a negative errno. */
int mn_os_event(void);
/* A negative descriptor: nothing happens. */
void mn_os_event_raise(int fd);
void mn_os_event_clear(int fd);

/* A byte into a socket, if it has room: whoever has the other end can't make it block or fail. */
void mn_os_wake_send(int fd);
/* Takes out what is there. False: the other end is closed. */
bool mn_os_wake_drain(int fd);

/* As poll(2), with a timeout in nanoseconds (UINT64_MAX: none); -EINTR on a signal. */
int mn_os_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns);

static inline void mn_os_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
