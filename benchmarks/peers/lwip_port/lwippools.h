/* SPDX-License-Identifier: MIT */
/* Pools behind lwIP's mem_malloc: constant-time free lists in place of its first-fit heap.
 * No include guard: lwIP includes this once for each thing it generates from the list. */
LWIP_MALLOC_MEMPOOL_START
LWIP_MALLOC_MEMPOOL(512, 256)
LWIP_MALLOC_MEMPOOL(2048, 1664)
LWIP_MALLOC_MEMPOOL_END
