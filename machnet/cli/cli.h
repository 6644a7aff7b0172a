/* SPDX-License-Identifier: MIT */
#ifndef MN_CLI_CLI_H
#define MN_CLI_CLI_H

#include "machnet/cli/histogram.h"
#include "machnet/cli/msg_app.h"
#include "machnet/cli/msg_gen.h"
#include "machnet/cli/probe.h"
#include "machnet/cli/tcp_frame.h"
#include "machnet/cli/tcp_msg_gen.h"

#endif
