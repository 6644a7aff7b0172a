/* SPDX-License-Identifier: MIT */
/* NIC drivers and middleware. */
#ifndef MN_SIM_H
#define MN_SIM_H

#include "capswitch.h"
#include "capture.h"
#include "check.h"
#include "faultnic.h"
#include "linknic.h"
#include "nickit.h"
#include "pcapng.h"
#include "pcapnic.h"
#include "shaper.h"
#include "shared_nic.h"
#include "simnet.h"
#include "tap.h"
#include "vnet.h"
#include "wire.h"

#endif
