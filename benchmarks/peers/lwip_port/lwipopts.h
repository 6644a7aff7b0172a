/* SPDX-License-Identifier: MIT */
/* lwIP configured for speed: the peer that `benchmarks pair` is measured against. */
#ifndef MN_LWIP_LWIPOPTS_H
#define MN_LWIP_LWIPOPTS_H

/* One thread calls everything, through the raw API: no locks, no mailboxes. */
#define NO_SYS               1
#define SYS_LIGHTWEIGHT_PROT 0
#define LWIP_NETCONN         0
#define LWIP_SOCKET          0

/* Only what the work needs is compiled in. */
#define LWIP_IPV4             1
#define LWIP_IPV6             0
#define LWIP_ARP              1
#define LWIP_ETHERNET         1
#define LWIP_TCP              1
#define LWIP_UDP              0
#define LWIP_RAW              0
#define LWIP_ICMP             1
#define LWIP_DHCP             0
#define LWIP_DNS              0
#define IP_FRAG               0
#define IP_REASSEMBLY         0
#define IP_FORWARD            0
#define LWIP_SINGLE_NETIF     1
#define LWIP_NETIF_HWADDRHINT 1
#define LWIP_NETIF_LOOPBACK   0
#define LWIP_HAVE_LOOPIF      0
#define LWIP_STATS            0
#define TCP_LISTEN_BACKLOG    0

/* No assertions, no debug output. */
#define LWIP_NOASSERT 1

/* Windows of 256 KiB, full-sized segments, no timestamps, SACK as lwIP has it by default. */
#define TCP_MSS             1460
#define TCP_WND             (256 * 1024)
#define TCP_SND_BUF         (256 * 1024)
#define TCP_SNDLOWAT        32768
#define LWIP_WND_SCALE      1
#define TCP_RCV_SCALE       3
#define LWIP_TCP_TIMESTAMPS 0

/* A segment is one full-sized buffer that later writes of the same pass fill up. */
#define LWIP_NETIF_TX_SINGLE_PBUF 1

/* Memory: pools, more than a full window in both directions can use. */
#define MEM_ALIGNMENT            8
#define MEM_USE_POOLS            1
#define MEMP_USE_CUSTOM_POOLS    1
#define MEMP_NUM_TCP_PCB         16
#define MEMP_NUM_TCP_PCB_LISTEN  4
#define TCP_SND_QUEUELEN         1024
#define MEMP_NUM_TCP_SEG         2048
#define MEMP_NUM_PBUF            2048
#define PBUF_POOL_SIZE           256
#define LWIP_SUPPORT_CUSTOM_PBUF 1

/* All checksums are generated and checked in software, with our vector code. */
#define CHECKSUM_GEN_IP    1
#define CHECKSUM_GEN_TCP   1
#define CHECKSUM_CHECK_IP  1
#define CHECKSUM_CHECK_TCP 1
#define LWIP_CHKSUM        mn_lwip_sum

#endif
