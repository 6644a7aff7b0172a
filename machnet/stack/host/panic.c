/* SPDX-License-Identifier: MIT */
/* Where a broken invariant of the core ends. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "machnet/stack/core/base.h"

void mn_panic(const char *file, int line, const char *what)
{
    char text[512];
    int len = snprintf(text, sizeof(text), "machnet: %s:%d: %s\n", file, line, what);

    if (len > 0) {
        size_t bytes = (size_t)len < sizeof(text) ? (size_t)len : sizeof(text) - 1;

        /* write(2), because stdio may be what is broken; its failure changes nothing. */
        if (write(STDERR_FILENO, text, bytes) < 0) {
            abort();
        }
    }
    abort();
}
