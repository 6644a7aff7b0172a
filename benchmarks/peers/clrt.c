/* SPDX-License-Identifier: MIT */
/* clrt: how long a cache line takes from one core to another and back, in ns.
 * Usage: clrt CPU CPU. One JSON object: the median, least and greatest of many short batches. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BATCHES     41u
#define BATCH_TRIPS 2000u
#define TOTAL_TRIPS (BATCHES * BATCH_TRIPS)

/* One line that goes there and back: odd values are the first core's, even ones the second's. */
static _Alignas(256) _Atomic uint32_t line;
static atomic_bool echo_pinned;

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void pin(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (pthread_setaffinity_np(pthread_self(), sizeof(set), &set) != 0) {
        fprintf(stderr, "clrt: can't run on CPU %d\n", cpu);
        exit(1);
    }
}

static void *echo(void *cpu)
{
    pin(*(const int *)cpu);
    atomic_store(&echo_pinned, true);
    for (uint32_t trip = 1; trip <= TOTAL_TRIPS; trip++) {
        while (atomic_load_explicit(&line, memory_order_acquire) != 2 * trip - 1)
            ;
        atomic_store_explicit(&line, 2 * trip, memory_order_release);
    }
    return NULL;
}

static int by_value(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    double batch_ns[BATCHES];
    pthread_t thread;
    uint32_t trip = 0;
    int cpus[2];

    if (argc != 3) {
        fprintf(stderr, "usage: clrt CPU CPU\n");
        return 2;
    }
    for (int i = 0; i < 2; i++)
        cpus[i] = atoi(argv[i + 1]);
    pin(cpus[0]);
    if (pthread_create(&thread, NULL, echo, &cpus[1]) != 0)
        return 1;
    while (!atomic_load(&echo_pinned))
        sched_yield();
    for (uint32_t batch = 0; batch < BATCHES; batch++) {
        const uint64_t start_ns = clock_ns();

        for (uint32_t i = 0; i < BATCH_TRIPS; i++) {
            atomic_store_explicit(&line, 2 * ++trip - 1, memory_order_release);
            while (atomic_load_explicit(&line, memory_order_acquire) != 2 * trip)
                ;
        }
        batch_ns[batch] = (double)(clock_ns() - start_ns) / BATCH_TRIPS;
    }
    pthread_join(thread, NULL);
    qsort(batch_ns, BATCHES, sizeof(batch_ns[0]), by_value);
    printf("{\"cpus\": [%d, %d], \"median_ns\": %.1f, \"least_ns\": %.1f, \"greatest_ns\": %.1f}\n",
           cpus[0], cpus[1], batch_ns[BATCHES / 2], batch_ns[0], batch_ns[BATCHES - 1]);
    return 0;
}
