/* SPDX-License-Identifier: MIT */
/* What a parse function answers when it refuses its bytes. */
#ifndef MN_WIRE_ERR_H
#define MN_WIRE_ERR_H

enum mn_wire_err {
    MN_WIRE_TRUNCATED = -1,   /* the bytes end before what the header announces */
    MN_WIRE_BAD_VERSION = -2, /* not the protocol version of this view */
    MN_WIRE_BAD_LENGTH = -3,  /* a length field contradicts the header it is in */
    MN_WIRE_BAD_CSUM = -4,
    MN_WIRE_UNSUPPORTED = -5, /* well formed, but nothing that this stack speaks */
    MN_WIRE_FRAGMENT = -6,
    MN_WIRE_BAD_ADDR = -7, /* an address that no host may have */
    MN_WIRE_BAD_OPTION = -8,
};

#endif
