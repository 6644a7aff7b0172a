/* SPDX-License-Identifier: MIT */
/* Checked views of the headers on the wire, and the emitters that write them. No state.
 *
 * A view is validated once, by mn_X_parse(bytes, len, &out): 0, or a negative enum mn_wire_err and
 * then `out` is unspecified. After success every field is in host byte order, and `payload` with
 * `payload_len` lies inside the bytes. Views point into the frame: they live as long as it does.
 * Emitters write exactly what they return as their length. */
#ifndef MN_WIRE_H
#define MN_WIRE_H

#include "../base.h"
#include "arp.h"
#include "csum.h"
#include "err.h"
#include "eth.h"
#include "icmp.h"
#include "ipv4.h"
#include "mnp.h"
#include "tcp.h"
#include "tcp_opts.h"
#include "udp.h"

#endif
