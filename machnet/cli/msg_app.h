/* SPDX-License-Identifier: MIT */
/*
 * What the two message generators have in common, whatever carries their messages: the application
 * header, the payload pattern, the client's window of slots, and what is counted.
 *
 * A message's payload begins with `window_slot`, 8 bytes, little-endian (the order in which an x86
 * program of the original writes its own integers). The client numbers its slots from 0 and the
 * server sends the number back. Payload byte i is i mod 256 from byte 8 on.
 */
#ifndef MN_CLI_MSG_APP_H
#define MN_CLI_MSG_APP_H

#include <assert.h>
#include <endian.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "machnet/cli/histogram.h"

#define MN_MSG_HEADER_BYTES 8u
#define MN_MSG_MAX_BYTES    (8u << 20)
#define MN_MSG_WINDOW_MAX   65536u
/* mn_msg_check()'s answer when every byte is right. */
#define MN_MSG_MATCH UINT32_MAX

/* What can be wrong with a message or with the connection that carries it. */
enum mn_msg_fault_kind {
    MN_MSG_FAULT_NONE = 0,
    MN_MSG_FAULT_LENGTH = 1,  /* a length below MN_MSG_HEADER_BYTES or above MN_MSG_MAX_BYTES */
    MN_MSG_FAULT_SLOT = 2,    /* a reply to a slot that is not in flight */
    MN_MSG_FAULT_PAYLOAD = 3, /* a byte that is not as the pattern has it */
    MN_MSG_FAULT_TORN = 4,    /* the end of the connection in the middle of a message */
    MN_MSG_FAULT_CLOSED = 5,  /* the end of the connection while replies are missing */
    MN_MSG_FAULT_SYSTEM = 6,  /* a system call failed: `error` says how */
    MN_MSG_FAULT_ACCEPT = 7,  /* a connection could not be accepted: `error` says why */
    MN_MSG_FAULT_OWED = 8,    /* a peer asks on and on and does not read the answers */
    MN_MSG_FAULT_FLOW = 9,    /* the engine ended the flow: `error` says why */
};

struct mn_msg_fault {
    uint32_t kind;
    uint32_t length; /* payload bytes of the message, as its prefix has it */
    uint64_t slot;
    uint32_t offset; /* of the wrong byte in the payload, or of bytes seen when torn */
    uint8_t expected;
    uint8_t got;
    uint16_t peer_port;
    uint32_t peer_ip_be; /* network order; 0 when there is no peer to name */
    int32_t error;       /* errno */
};

/* Counted over one interval; lengths are payload bytes, without a transport's framing. */
struct mn_msg_stats {
    uint64_t tx_msgs;
    uint64_t tx_bytes;
    uint64_t rx_msgs;
    uint64_t rx_bytes;
    uint64_t payload_faults;
    struct mn_hist rtt; /* a client's time from send to reply, one value per message */
};

void mn_msg_stats_reset(struct mn_msg_stats *stats);
/* Adds an interval to a total and empties the interval. */
void mn_msg_stats_move(struct mn_msg_stats *total, struct mn_msg_stats *interval);

/* The pattern repeats every 256 bytes; any MN_MSG_PATTERN_BYTES of it can be copied in one go. */
#define MN_MSG_PATTERN_PERIOD 256u
#define MN_MSG_PATTERN_BYTES  4096u
extern uint8_t mn_msg_pattern[MN_MSG_PATTERN_PERIOD + MN_MSG_PATTERN_BYTES];

/* Writes the payload bytes [offset, offset + length) of any message; the header's bytes are written
 * as if they were pattern, for the caller to overwrite. */
void mn_msg_fill(uint8_t *data, uint32_t length, uint32_t offset);
/* Checks the payload bytes [offset, offset + length), leaving out the header's. Returns the payload
 * offset of the first wrong byte, or MN_MSG_MATCH. */
uint32_t mn_msg_check(const uint8_t *data, uint32_t length, uint32_t offset);

static inline uint64_t mn_msg_slot_read(const uint8_t *payload)
{
    uint64_t slot;
    memcpy(&slot, payload, sizeof(slot));
    return le64toh(slot);
}

static inline void mn_msg_slot_write(uint8_t *payload, uint64_t slot)
{
    slot = htole64(slot);
    memcpy(payload, &slot, sizeof(slot));
}

/* CLOCK_MONOTONIC, which is Python's time.monotonic_ns() too. */
static inline uint64_t mn_msg_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* Between two looks for work. Who spins for a while only lets others have the CPU meanwhile: they
 * may be those it waits for. */
static inline void mn_msg_relax(uint64_t spin_ns)
{
    if (spin_ns != UINT64_MAX) {
        (void)sched_yield();
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/*
 * The transport-independent half of a client. A transport asks mn_msg_client_next() for a slot
 * whenever it can send, and tells mn_msg_client_reply() of each reply.
 */
struct mn_msg_client {
    struct mn_msg_stats *stats; /* of the running interval */
    uint64_t *sent_ns;          /* per slot, MN_MSG_SLOT_IDLE while it is not in flight */
    uint32_t *idle;             /* a stack of the idle slots */
    uint32_t idle_count;
    uint32_t window;
    uint32_t msg_size; /* payload bytes, the header included */
    bool verify;
    bool draining;               /* send nothing new, only wait for what is in flight */
    uint64_t msgs_left;          /* still to be sent; UINT64_MAX is no limit */
    uint64_t rate_per_s;         /* messages are due by the clock; 0: whenever one can be sent */
    uint64_t start_ns;           /* when the first one was due, with a rate */
    uint64_t number;             /* of the next one, with a rate */
    struct mn_msg_fault payload; /* the first wrong payload */
    struct mn_msg_fault fatal;   /* what ended the run */
};

#define MN_MSG_SLOT_IDLE UINT64_MAX

/* `msgs_max` 0 is no limit. Returns 0, -EINVAL on a size or window out of range, or -ENOMEM. */
int mn_msg_client_open(struct mn_msg_client *client, struct mn_msg_stats *stats, uint32_t msg_size,
                       uint32_t window, uint64_t msgs_max, bool verify);
void mn_msg_client_close(struct mn_msg_client *client);
/* Records a reply of `length` payload bytes to `slot`. `wrong_at` is what mn_msg_check() said of
 * its payload and `got` the byte there; a wrong one is counted and the first is kept. Returns 0, or
 * -EPROTO when no such message is in flight. */
int mn_msg_client_reply(struct mn_msg_client *client, uint64_t slot, uint32_t length,
                        uint32_t wrong_at, uint8_t got, uint64_t now_ns);

/* When the next message is due, with a rate; UINT64_MAX when none can be sent anyway. */
static inline uint64_t mn_msg_client_due_ns(const struct mn_msg_client *client)
{
    uint64_t rate = client->rate_per_s, n = client->number;

    if (client->idle_count == 0 || client->msgs_left == 0 || client->draining || rate == 0)
        return UINT64_MAX;
    return client->start_ns + n / rate * UINT64_C(1000000000) +
           n % rate * UINT64_C(1000000000) / rate;
}

/* With a rate: false when no message is due; else *due_ns says when the next one was. */
static inline bool mn_msg_client_is_due(struct mn_msg_client *client, uint64_t now_ns,
                                        uint64_t *due_ns)
{
    if (client->start_ns == 0)
        client->start_ns = now_ns;
    *due_ns = mn_msg_client_due_ns(client);
    if (*due_ns > now_ns)
        return false;
    client->number++;
    return true;
}

/* Whether a message may be sent now. Takes the slot: it is in flight from `now_ns` on, or, with a
 * rate, from when it was due: what it had to wait for is part of its round trip. */
static inline bool mn_msg_client_next(struct mn_msg_client *client, uint64_t now_ns, uint32_t *slot)
{
    if (client->idle_count == 0 || client->msgs_left == 0 || client->draining)
        return false;
    if (client->rate_per_s != 0 && !mn_msg_client_is_due(client, now_ns, &now_ns))
        return false;
    if (client->msgs_left != UINT64_MAX)
        client->msgs_left--;
    *slot = client->idle[--client->idle_count];
    client->sent_ns[*slot] = now_ns;
    return true;
}

/* Gives back the slot of a message that the transport did not take after all. */
static inline void mn_msg_client_untake(struct mn_msg_client *client, uint32_t slot)
{
    client->sent_ns[slot] = MN_MSG_SLOT_IDLE;
    client->idle[client->idle_count++] = slot;
    if (client->msgs_left != UINT64_MAX)
        client->msgs_left++;
    client->number -= client->rate_per_s != 0;
}

static inline uint32_t mn_msg_client_in_flight(const struct mn_msg_client *client)
{
    return client->window - client->idle_count;
}

/* Nothing is in flight and nothing is left to send. */
static inline bool mn_msg_client_done(const struct mn_msg_client *client)
{
    return client->idle_count == client->window && (client->msgs_left == 0 || client->draining);
}

#endif
