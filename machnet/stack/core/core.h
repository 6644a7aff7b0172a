/* SPDX-License-Identifier: MIT */
/* The core's headers in one: what the extension module is compiled against. */
#ifndef MN_CORE_H
#define MN_CORE_H

#include "chan_app.h"
#include "channel.h"
#include "engine.h"
#include "rss.h"

#endif
