/* SPDX-License-Identifier: MIT */
#include "os.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "host.h"
#include "machnet/stack/core/wire/csum.h"

/* Which checksums suit this CPU: as the library is loaded, before any engine runs and while one
 * thread alone knows of it. */
static __attribute__((constructor)) void select_code(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    mn_csum_select(__builtin_cpu_supports("avx2") ? MN_CPU_AVX2 : 0);
#else
    mn_csum_select(0);
#endif
}

void *mn_os_map(uint64_t bytes)
{
    void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return mem == MAP_FAILED ? NULL : mem;
}

void mn_os_unmap(void *mem, uint64_t bytes)
{
    if (mem != NULL) {
        munmap(mem, bytes);
    }
}

int mn_os_event(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

void mn_os_event_raise(int fd)
{
    uint64_t one = 1;

    /* It fails only when the counter is at its end: then the descriptor is readable anyway. */
    if (fd >= 0 && write(fd, &one, sizeof(one)) < 0) {
        return;
    }
}

void mn_os_event_clear(int fd)
{
    uint64_t count;

    /* It fails only when the counter is 0 already. */
    if (fd >= 0 && read(fd, &count, sizeof(count)) < 0) {
        return;
    }
}

void mn_os_wake_send(int fd)
{
    const uint8_t byte = 1;

    /* Full: it is readable already. Closed: nobody waits. */
    if (send(fd, &byte, sizeof(byte), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        return;
    }
}

/* More than a socket holds: a sender that keeps up with us is not waited for. */
#define WAKE_READS_MAX 8192

bool mn_os_wake_drain(int fd)
{
    uint8_t bytes[256];
    ssize_t got;
    int n = 0;

    do {
        got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    } while (got == (ssize_t)sizeof(bytes) && ++n < WAKE_READS_MAX);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

int mn_os_poll(struct pollfd *fds, uint32_t n, uint64_t timeout_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(timeout_ns / MN_NS_PER_S),
                          .tv_nsec = (long)(timeout_ns % MN_NS_PER_S)};
    int ready = ppoll(fds, n, timeout_ns == UINT64_MAX ? NULL : &ts, NULL);

    return ready < 0 ? -errno : ready;
}

uint64_t mn_host_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * MN_NS_PER_S + (uint64_t)now.tv_nsec;
}

int mn_host_random(uint8_t *out, uint32_t bytes)
{
    uint32_t have = 0;

    while (have < bytes) {
        ssize_t got = getrandom(out + have, bytes - have, 0);

        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        have += (uint32_t)got;
    }
    return 0;
}

/* SplitMix64: a counter through a mixing function, so that near seeds give unlike keys. */
void mn_host_seeded(uint64_t seed, uint8_t *out, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += 8) {
        uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
        uint8_t le[8];

        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        z ^= z >> 31;
        for (uint32_t b = 0; b < 8; b++) {
            le[b] = (uint8_t)(z >> (8 * b));
        }
        memcpy(out + i, le, mn_min_u32(8, bytes - i));
    }
}
