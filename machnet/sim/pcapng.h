/* SPDX-License-Identifier: MIT */
/* A writer of pcapng files (draft-ietf-opsawg-pcapng): one section, any number of Ethernet
 * interfaces, packets with nanoseconds, direction and comments. It knows nothing of NICs.
 *
 * Blocks gather in a buffer and go to the file when it is full, on flush and on close. A file that
 * can't be written (disk full) never stops the caller: packets are dropped and counted, what was
 * not written is tried again later, and the file ends at the end of a block. One thread at a time.
 */
#ifndef MN_SIM_PCAPNG_H
#define MN_SIM_PCAPNG_H

#include "machnet/stack/core/base.h"

#define MN_PCAPNG_FRAME_MAX     (65536u + 64u) /* bytes captured of a frame */
#define MN_PCAPNG_COMMENT_MAX   4096u          /* bytes of UTF-8; what is over is cut off */
#define MN_PCAPNG_NAME_MAX      255u
#define MN_PCAPNG_IFACES_MAX    65536u
#define MN_PCAPNG_BUF_BYTES_MIN (128u << 10)
#define MN_PCAPNG_BUF_BYTES_MAX (64u << 20)

/* Bits 0 and 1 of epb_flags. */
enum mn_pcapng_dir { MN_PCAPNG_DIR_NONE = 0, MN_PCAPNG_DIR_IN = 1, MN_PCAPNG_DIR_OUT = 2 };

struct mn_pcapng_config {
    int fd;             /* open for writing; closed by mn_pcapng_close */
    uint32_t buf_bytes; /* 128 KiB to 64 MiB; 0: 256 KiB */
    const char *app;    /* name of the writing program (shb_userappl), or NULL */
};

struct mn_pcapng_iface {
    const char *name;
    uint32_t snaplen; /* bytes kept of a frame, 1 to MN_PCAPNG_FRAME_MAX; 0: all */
    uint8_t mac[6];   /* all zero: not said */
};

struct mn_pcapng_pkt {
    uint32_t iface; /* from mn_pcapng_add_iface */
    uint32_t dir;   /* enum mn_pcapng_dir */
    uint64_t t_ns;  /* since 1970, or since whatever the capture's clock began with */
    uint32_t cap_len;
    uint32_t orig_len;
    const char *comment; /* NULL for none */
    uint32_t comment_len;
};

struct mn_pcapng_stats {
    uint64_t packets; /* put into the buffer */
    uint64_t dropped; /* packets that found no room because the file could not be written */
    uint64_t written_bytes;
    uint64_t write_errors;
    int last_errno; /* of the last write error, 0 if there was none */
};

/* What mn_pcapng_rollback goes back to. */
struct mn_pcapng_mark {
    uint32_t pos;
    uint64_t packets;
    uint64_t dropped;
};

struct mn_pcapng;

/* 0, -EINVAL or -ENOMEM. On failure fd stays the caller's. */
int mn_pcapng_open(const struct mn_pcapng_config *cfg, struct mn_pcapng **out);
/* Flushes, cuts off a torn last block where the file allows it, and closes fd. 0, or the negative
 * errno because of which the file is incomplete. */
int mn_pcapng_close(struct mn_pcapng *w);
/* The interface's number, from 0; -EINVAL, or -ENOSPC when there is no room for its description. */
int mn_pcapng_add_iface(struct mn_pcapng *w, const struct mn_pcapng_iface *iface);
/* The interface's snaplen. */
uint32_t mn_pcapng_snaplen(const struct mn_pcapng *w, uint32_t iface);
/* Adds a packet and returns where its cap_len bytes are to be put, before any other call. NULL: no
 * room even after writing, or cap_len above the maximum; counted as dropped. */
uint8_t *mn_pcapng_packet(struct mn_pcapng *w, const struct mn_pcapng_pkt *pkt);
/* The same with the bytes given: 0 or -ENOSPC. */
int mn_pcapng_write(struct mn_pcapng *w, const struct mn_pcapng_pkt *pkt, const uint8_t *bytes);
/* 0 or a negative errno: then what is left is tried again later. */
int mn_pcapng_flush(struct mn_pcapng *w);
void mn_pcapng_get_stats(const struct mn_pcapng *w, struct mn_pcapng_stats *out);

/* Bytes that a packet's block takes. */
uint32_t mn_pcapng_block_bytes(uint32_t cap_len, uint32_t comment_len);
/* Free bytes of the buffer. */
uint32_t mn_pcapng_space(const struct mn_pcapng *w);
/* Whether `need` bytes fit, after a flush if they must. After a failure it does not try the file
 * again for some packets. */
bool mn_pcapng_make_room(struct mn_pcapng *w, uint32_t need);
/* Counts a packet that its owner did not even try to add. */
void mn_pcapng_count_drop(struct mn_pcapng *w);
/* Takes back what was added since the mark. Only while nothing was flushed in between: a caller
 * makes room first. */
struct mn_pcapng_mark mn_pcapng_mark(const struct mn_pcapng *w);
void mn_pcapng_rollback(struct mn_pcapng *w, struct mn_pcapng_mark mark);

#endif
