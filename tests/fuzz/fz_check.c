/* SPDX-License-Identifier: MIT */
/* What must hold between two calls into the engine: the simulator's own look at it. */
#include "fz_host.h"
#include "machnet/sim/check.h"

void fz_check_engine(const struct mn_engine *e)
{
    char text[512];

    /* It notes the hits of its look-ups, and takes that back. */
    if (mn_check_engine((struct mn_engine *)(uintptr_t)e, text, sizeof(text)) < 0) {
        mn_panic(__FILE__, __LINE__, text);
    }
}
