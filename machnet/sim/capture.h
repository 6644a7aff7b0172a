/* SPDX-License-Identifier: MIT */
/* Middleware around any NIC: writes each frame that passes to a pcapng file.
 *
 * A frame is written as it is handed over: a segment that stands for many wire frames is one packet
 * of the file. A checksum that its sender left to the hardware is completed in the written copy.
 * Frames that the inner NIC did not take are not written. */
#ifndef MN_SIM_CAPTURE_H
#define MN_SIM_CAPTURE_H

#include "machnet/stack/core/nic.h"

#include "pcapng.h"

struct mn_capture_config {
    struct mn_pcapng *writer; /* stays the caller's; several captures of one thread may share it */
    const char *if_name;      /* name of the interface in the file */
    uint32_t snaplen;         /* bytes kept of each frame; 0: all */
    uint64_t epoch_ns;        /* added to each time: where the clock of `now` began, since 1970 */
};

/* *out wraps inner, which must outlive it. 0, -EINVAL, -ENOMEM or -ENOSPC. */
int mn_capture_open(struct mn_nic *inner, const struct mn_capture_config *cfg, struct mn_nic **out);
/* Neither flushes the writer nor closes the inner NIC. */
void mn_capture_close(struct mn_nic *nic);
/* The time of the frames from now on; the host sets it before each poll. */
void mn_capture_set_now(struct mn_nic *nic, uint64_t now_ns);
int mn_capture_flush(struct mn_nic *nic);

#endif
