/* SPDX-License-Identifier: MIT */
#include "tap_open.h"

#include "vnet.h"

#include "machnet/stack/core/wire/eth.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define TAP_MTU_DEFAULT 1500u
#define TAP_MTU_MIN     68u
#define TAP_MTU_MAX     65521u /* the kernel's own bound for an Ethernet-like device */
#define TUN_PATH        "/dev/net/tun"

static_assert(MN_TAP_NAME_MAX + 1 == IFNAMSIZ, "interface names are the kernel's");

int mn_tap_fail(const struct mn_tap_err *err, int rc, const char *fmt, ...)
{
    va_list args;

    if (err->text != NULL && err->size > 0) {
        va_start(args, fmt);
        (void)vsnprintf(err->text, err->size, fmt, args);
        va_end(args);
    }
    return rc;
}

static bool name_ok(const char *name)
{
    size_t i, len = name != NULL ? strlen(name) : 0;

    if (len == 0 || len > MN_TAP_NAME_MAX || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return false;
    }
    for (i = 0; i < len; i++) {
        /* '%' would make the kernel choose a number. */
        if (name[i] <= ' ' || name[i] > '~' || name[i] == '/' || name[i] == ':' || name[i] == '%') {
            return false;
        }
    }
    return true;
}

static int attach(int fd, const char *name, int flags)
{
    struct ifreq ifr = {.ifr_flags = (short)flags};

    memcpy(ifr.ifr_name, name, strlen(name) + 1);
    return ioctl(fd, TUNSETIFF, &ifr) == 0 ? 0 : -errno;
}

/* With IFF_NAPI the kernel frees what we sent at once; without it, every 32 frames, with an
 * interrupt to the other core: a tail of 20 us. */
#define TAP_FLAGS (IFF_TAP | IFF_NO_PI | IFF_NAPI)

/* Attaches the first queue. The kernel takes the flags of the last one that attaches, but for
 * whether there may be several queues, which is fixed when a device is made. */
static int attach_first(const char *name, struct mn_tap_dev *dev, bool many)
{
    const int multi = TAP_FLAGS | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    const int one = TAP_FLAGS | IFF_VNET_HDR;
    int rc = attach(dev->fd, name, many ? multi : one);

    if (rc == -EINVAL) {
        rc = attach(dev->fd, name, many ? one : multi);
        many = !many;
    }
    if (rc == -EINVAL) {
        rc = attach(dev->fd, name, TAP_FLAGS);
        many = false;
    }
    dev->queues = 1;
    return rc == 0 ? many : rc;
}

/* Attaches the queues behind the first, each by a descriptor of its own. */
static int attach_more(const char *name, struct mn_tap_dev *dev, uint32_t queues)
{
    while (dev->queues < queues) {
        int fd = open(TUN_PATH, O_RDWR | O_CLOEXEC);
        int rc;

        if (fd < 0) {
            return -errno;
        }
        dev->more_fds[dev->queues - 1] = fd;
        dev->queues++; /* ours to close from now on */
        rc = attach(fd, name, TAP_FLAGS | IFF_VNET_HDR | IFF_MULTI_QUEUE);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

static int open_by_name(const char *name, uint32_t queues, struct mn_tap_dev *dev,
                        const struct mn_tap_err *err)
{
    int rc;

    if (!name_ok(name)) {
        return mn_tap_fail(err, -EINVAL,
                           "tap: an interface name has 1 to %u characters and no '/', ':', "
                           "'%%' or blank; got '%.32s'",
                           MN_TAP_NAME_MAX, name != NULL ? name : "");
    }
    dev->fd = open(TUN_PATH, O_RDWR | O_CLOEXEC);
    if (dev->fd < 0) {
        rc = -errno;
        return mn_tap_fail(err, rc, "tap:%s: cannot open %s: %s", name, TUN_PATH, strerror(-rc));
    }
    dev->ours = true;
    rc = attach_first(name, dev, queues > 1);
    if (rc > 0) {
        rc = attach_more(name, dev, queues);
    }
    if (rc == -EBUSY) {
        return mn_tap_fail(err, rc, "tap:%s: the interface is in use by another process", name);
    }
    if (rc == -EPERM) {
        return mn_tap_fail(err, rc,
                           "tap:%s: not permitted; root makes an interface for you with: "
                           "ip tuntap add %s mode tap user NAME",
                           name, name);
    }
    if (rc != 0) {
        return mn_tap_fail(err, rc, "tap:%s: cannot attach (is it another kind of interface?): %s",
                           name, strerror(-rc));
    }
    return 0;
}

/* What kind of device the descriptor is. */
static int identify(struct mn_tap_dev *dev, const struct mn_tap_err *err)
{
    struct ifreq ifr = {0};
    int rc;

    if (ioctl(dev->fd, TUNGETIFF, &ifr) != 0) {
        rc = -errno;
        return mn_tap_fail(err, rc,
                           "tap: descriptor %d is not a TAP that is attached to an interface: %s",
                           dev->fd, strerror(-rc));
    }
    memcpy(dev->name, ifr.ifr_name, sizeof(dev->name));
    dev->name[MN_TAP_NAME_MAX] = '\0';
    if ((ifr.ifr_flags & IFF_TAP) == 0) {
        return mn_tap_fail(err, -EINVAL, "tap:%s: it is a TUN device, without Ethernet headers",
                           dev->name);
    }
    dev->vnet = (ifr.ifr_flags & IFF_VNET_HDR) != 0;
    return 0;
}

/* Agrees with the kernel on the vnet header and on what it may hand over. Refusals are no errors.
 */
static int negotiate(const struct mn_tap_config *cfg, struct mn_tap_dev *dev,
                     const struct mn_tap_err *err)
{
    static const unsigned wishes[] = {
        TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN,
        TUN_F_CSUM | TUN_F_TSO4,
        TUN_F_CSUM,
    };
    const int hdr_bytes = (int)MN_VNET_HDR_BYTES;
    size_t i;

    if (dev->vnet && ioctl(dev->fd, TUNSETVNETHDRSZ, &hdr_bytes) != 0) {
        int rc = -errno;

        return mn_tap_fail(err, rc, "tap:%s: the kernel refuses a vnet header of %d bytes: %s",
                           dev->name, hdr_bytes, strerror(-rc));
    }
    if (dev->vnet && !cfg->no_offload) {
        for (i = 0; i < MN_ARRAY_LEN(wishes); i++) {
            if (ioctl(dev->fd, TUNSETOFFLOAD, (unsigned long)wishes[i]) == 0) {
                dev->csum = true;
                dev->tso = (wishes[i] & TUN_F_TSO4) != 0;
                return 0;
            }
        }
    }
    /* A previous user's offloads stay with a persistent device unless they are turned off. */
    (void)ioctl(dev->fd, TUNSETOFFLOAD, 0UL);
    return 0;
}

static int if_socket(void)
{
    return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

static struct ifreq if_request(const struct mn_tap_dev *dev)
{
    struct ifreq ifr = {0};

    memcpy(ifr.ifr_name, dev->name, sizeof(ifr.ifr_name));
    return ifr;
}

/* Asks for the kernel's MAC (through the descriptor, so in any namespace) and for the MTU: by name,
 * which is believed only if the interface of that name, seen from here, has the same MAC. */
static void query(struct mn_tap_dev *dev)
{
    struct ifreq ifr = {0};
    int sock;

    if (ioctl(dev->fd, SIOCGIFHWADDR, &ifr) != 0 || ifr.ifr_hwaddr.sa_family != ARPHRD_ETHER) {
        return;
    }
    memcpy(dev->kernel_mac, ifr.ifr_hwaddr.sa_data, sizeof(dev->kernel_mac));
    dev->has_kernel_mac = true;
    sock = if_socket();
    if (sock < 0) {
        return;
    }
    ifr = if_request(dev);
    if (ioctl(sock, SIOCGIFHWADDR, &ifr) == 0 &&
        memcmp(ifr.ifr_hwaddr.sa_data, dev->kernel_mac, sizeof(dev->kernel_mac)) == 0) {
        ifr = if_request(dev);
        if (ioctl(sock, SIOCGIFMTU, &ifr) == 0 && ifr.ifr_mtu > 0) {
            dev->mtu = (uint32_t)ifr.ifr_mtu;
        }
    }
    (void)close(sock);
}

static void set_sockaddr(struct sockaddr *out, uint32_t ip)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(ip)};

    memcpy(out, &in, sizeof(in));
}

static int configure_with(int sock, const struct mn_tap_config *cfg, const struct mn_tap_dev *dev)
{
    struct ifreq ifr = if_request(dev);

    set_sockaddr(&ifr.ifr_addr, cfg->kernel_ip);
    if (ioctl(sock, SIOCSIFADDR, &ifr) != 0) {
        return -errno;
    }
    ifr = if_request(dev);
    set_sockaddr(&ifr.ifr_netmask, UINT32_MAX << (32 - cfg->kernel_prefix));
    if (ioctl(sock, SIOCSIFNETMASK, &ifr) != 0) {
        return -errno;
    }
    ifr = if_request(dev);
    if (ioctl(sock, SIOCGIFFLAGS, &ifr) != 0) {
        return -errno;
    }
    ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_UP);
    return ioctl(sock, SIOCSIFFLAGS, &ifr) == 0 ? 0 : -errno;
}

/* Gives the kernel's end its address and brings it up. */
static int configure(const struct mn_tap_config *cfg, const struct mn_tap_dev *dev,
                     const struct mn_tap_err *err)
{
    int sock, rc;

    if (cfg->kernel_ip == 0) {
        return 0;
    }
    if (!dev->ours || cfg->kernel_prefix < 1 || cfg->kernel_prefix > 32) {
        return mn_tap_fail(err, -EINVAL,
                           "tap:%s: a kernel address needs a prefix of 1 to 32 and an "
                           "interface opened by name; got prefix %u",
                           dev->name, cfg->kernel_prefix);
    }
    sock = if_socket();
    if (sock < 0) {
        rc = -errno;
    } else {
        rc = configure_with(sock, cfg, dev);
        (void)close(sock);
    }
    if (rc != 0) {
        return mn_tap_fail(err, rc, "tap:%s: cannot set the kernel's address: %s", dev->name,
                           strerror(-rc));
    }
    return 0;
}

static int set_up(const struct mn_tap_config *cfg, struct mn_tap_dev *dev,
                  const struct mn_tap_err *err)
{
    int rc = identify(dev, err);

    if (rc == 0) {
        rc = negotiate(cfg, dev, err);
    }
    if (rc == 0) {
        rc = configure(cfg, dev, err);
    }
    if (rc != 0) {
        return rc;
    }
    dev->mtu = TAP_MTU_DEFAULT;
    query(dev);
    if (cfg->mtu != 0) {
        dev->mtu = cfg->mtu;
    }
    if (dev->mtu < TAP_MTU_MIN || dev->mtu > TAP_MTU_MAX) {
        return mn_tap_fail(err, -EINVAL, "tap:%s: an MTU is %u to %u bytes; got %u", dev->name,
                           TAP_MTU_MIN, TAP_MTU_MAX, dev->mtu);
    }
    for (uint32_t i = 0; i < dev->queues; i++) {
        int fd = i == 0 ? dev->fd : dev->more_fds[i - 1];
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
            rc = -errno;
            return mn_tap_fail(err, rc, "tap:%s: cannot be made non-blocking: %s", dev->name,
                               strerror(-rc));
        }
    }
    return 0;
}

int mn_tap_dev_open(const struct mn_tap_config *cfg, struct mn_tap_dev *dev,
                    const struct mn_tap_err *err)
{
    uint32_t queues = mn_max_u32(cfg->queues, 1);
    int rc = 0;

    *dev = (struct mn_tap_dev){.fd = cfg->fd, .queues = 1};
    if (queues > MN_TAP_QUEUES_MAX) {
        return mn_tap_fail(err, -EINVAL, "tap: a TAP has 1 to %u queues here; got %u",
                           MN_TAP_QUEUES_MAX, queues);
    }
    if (cfg->fd < 0) {
        rc = open_by_name(cfg->name, queues, dev, err);
    } else if (queues > 1) {
        memcpy(dev->more_fds, cfg->more_fds, (queues - 1) * sizeof(dev->more_fds[0]));
        dev->queues = queues;
    }
    if (rc == 0) {
        rc = set_up(cfg, dev, err);
    }
    return rc;
}
