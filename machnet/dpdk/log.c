/* SPDX-License-Identifier: MIT */
/* DPDK's log, kept in memory until somebody takes it. DPDK writes from any thread; Python is not
 * called from those. */
#include "dpdk_int.h"

#include <stdio.h>

#include <rte_log.h>

#define LOG_BYTES  65536u
#define LINE_BYTES 1024u

/* Each line: its length (2 bytes), its level, its text. `tail` and `head` only grow. */
static struct {
    pthread_mutex_t lock;
    uint8_t bytes[LOG_BYTES];
    uint64_t head, tail;
    char line[LINE_BYTES]; /* that has not ended yet */
    uint32_t len;
    uint32_t level;
} log_ring = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void put(const void *from, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        log_ring.bytes[log_ring.head++ % LOG_BYTES] = ((const uint8_t *)from)[i];
    }
}

static uint32_t peek_len(void)
{
    return log_ring.bytes[log_ring.tail % LOG_BYTES] |
           (uint32_t)log_ring.bytes[(log_ring.tail + 1) % LOG_BYTES] << 8;
}

static void end_line(void)
{
    uint8_t header[3] = {(uint8_t)log_ring.len, (uint8_t)(log_ring.len >> 8),
                         (uint8_t)log_ring.level};

    if (log_ring.len == 0) {
        return;
    }
    while (log_ring.head - log_ring.tail + sizeof(header) + log_ring.len > LOG_BYTES) {
        log_ring.tail += sizeof(header) + peek_len();
    }
    put(header, sizeof(header));
    put(log_ring.line, log_ring.len);
    log_ring.len = 0;
}

static ssize_t log_write(void *cookie, const char *text, size_t size)
{
    int level = rte_log_cur_msg_loglevel();

    (void)cookie;
    pthread_mutex_lock(&log_ring.lock);
    log_ring.level = level > 0 ? (uint32_t)level : RTE_LOG_INFO;
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '\n') {
            end_line();
        } else if (log_ring.len < LINE_BYTES) {
            log_ring.line[log_ring.len++] = text[i];
        }
    }
    pthread_mutex_unlock(&log_ring.lock);
    return (ssize_t)size;
}

int mn_dpdk_log_open(void)
{
    static FILE *stream;
    cookie_io_functions_t functions = {.write = log_write};

    if (stream == NULL) {
        stream = fopencookie(NULL, "w", functions);
        if (stream == NULL) {
            return -ENOMEM;
        }
        (void)setvbuf(stream, NULL, _IOLBF, LINE_BYTES);
    }
    return rte_openlog_stream(stream) == 0 ? 0 : -EIO;
}

uint32_t mn_dpdk_log_take(char *buf, uint32_t size, uint32_t *level)
{
    uint32_t len = 0;

    if (mn_dpdk_forked()) { /* who wrote when it was forked keeps the lock for ever */
        return 0;
    }
    pthread_mutex_lock(&log_ring.lock);
    if (log_ring.tail != log_ring.head) {
        uint32_t whole = peek_len();

        *level = log_ring.bytes[(log_ring.tail + 2) % LOG_BYTES];
        len = mn_min_u32(whole, size);
        for (uint32_t i = 0; i < len; i++) {
            buf[i] = (char)log_ring.bytes[(log_ring.tail + 3 + i) % LOG_BYTES];
        }
        log_ring.tail += 3 + whole;
    }
    pthread_mutex_unlock(&log_ring.lock);
    return len;
}
