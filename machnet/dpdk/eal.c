/* SPDX-License-Identifier: MIT */
/* The process's one EAL, and devices that come and go. */
#include "dpdk_int.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_version.h>

pthread_mutex_t mn_dpdk_lock = PTHREAD_MUTEX_INITIALIZER;
struct mn_dpdk *mn_dpdk_ports;
static bool started;
static pid_t starter;

/* What devices were plugged in as. */
struct plugged {
    struct plugged *next;
    char device[MN_DPDK_NAME_BYTES];
    char devargs[256];
};
static struct plugged *plugged;

int mn_dpdk_fail(const struct dpdk_err *err, int rc, const char *fmt, ...)
{
    va_list args;

    if (err != NULL && err->text != NULL && err->size > 0) {
        va_start(args, fmt);
        (void)vsnprintf(err->text, err->size, fmt, args);
        va_end(args);
    }
    return rc;
}

const char *mn_dpdk_version(void)
{
    return rte_version();
}

bool mn_dpdk_started(void)
{
    return started;
}

bool mn_dpdk_forked(void)
{
    return started && getpid() != starter;
}

int mn_dpdk_not_ours(char *err, size_t err_bytes)
{
    return mn_dpdk_fail(&(struct dpdk_err){.text = err, .size = err_bytes}, -ECHILD,
                        "DPDK belongs to process %d, from which this one was forked", (int)starter);
}

/* ---- starting -------------------------------------------------------------------------------- */

struct start {
    int argc;
    char **argv;
    int rc;
};

/* What it says is in its log; on these streams it would be said again, and of a wrong argument it
 * would print all that there are. */
static int quiet_init(int argc, char **argv)
{
#ifdef __GLIBC__          /* where they are ordinary variables */
    static FILE *nowhere; /* stays open: DPDK may remember it */
    FILE *out = stdout, *err = stderr;
    int rc;

    if (nowhere == NULL) {
        nowhere = fopen("/dev/null", "we");
    }
    if (nowhere != NULL) {
        stdout = stderr = nowhere;
    }
    rc = rte_eal_init(argc, argv);
    stdout = out;
    stderr = err;
    return rc;
#else
    return rte_eal_init(argc, argv);
#endif
}

/* EAL pins the thread that starts it, and makes it its "main lcore": so it gets one of its own. */
static void *start_thread(void *arg)
{
    struct start *s = arg;

    s->rc = quiet_init(s->argc, s->argv);
    if (s->rc < 0) {
        s->rc = rte_errno != 0 ? -rte_errno : -EIO;
    }
    return NULL;
}

int mn_dpdk_thread(pthread_t *thread, void *(*fn)(void *), void *arg)
{
    const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL};
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    for (size_t i = 0; i < MN_ARRAY_LEN(faults); i++) {
        sigdelset(&all, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

static int run_start(struct start *s)
{
    pthread_t thread;
    int rc = mn_dpdk_thread(&thread, start_thread, s);

    if (rc != 0) {
        return -rc;
    }
    (void)pthread_join(thread, NULL);
    return s->rc;
}

static int init_locked(int argc, char *const *argv, uint32_t log_level, const struct dpdk_err *err)
{
    /* EAL sorts the pointers and keeps some. */
    static char *args[MN_DPDK_ARGS_MAX + 1];
    struct start s = {.argc = argc, .argv = args};
    int rc;

    if (started) {
        return mn_dpdk_fail(err, -EALREADY, "EAL has been started in this process already");
    }
    if (argc < 1 || argc > MN_DPDK_ARGS_MAX) {
        return mn_dpdk_fail(err, -EINVAL, "EAL takes 1 to %d arguments: %d", MN_DPDK_ARGS_MAX,
                            argc);
    }
    for (int i = 0; i < argc; i++) {
        args[i] = strdup(argv[i]);
        if (args[i] == NULL) {
            return mn_dpdk_fail(err, -ENOMEM, "no memory for EAL's arguments");
        }
    }
    rc = mn_dpdk_log_open();
    if (rc != 0) {
        return mn_dpdk_fail(err, rc, "DPDK's log can't be redirected");
    }
    rte_log_set_global_level(log_level);
    rc = run_start(&s);
    if (rc < 0) {
        return mn_dpdk_fail(err, rc, "EAL did not start: %s", rte_strerror(-rc));
    }
    (void)mn_dpdk_log_open(); /* releases differ in who has the last word */
    starter = getpid();
    started = true;
    rc = mn_dpdk_watch_start();
    return rc == 0 ? 0 : mn_dpdk_fail(err, rc, "no thread to watch the ports");
}

int mn_dpdk_init(int argc, char *const *argv, uint32_t log_level, char *err, size_t err_bytes)
{
    int rc;

    if (mn_dpdk_forked()) {
        return mn_dpdk_not_ours(err, err_bytes);
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    rc = init_locked(argc, argv, log_level, &(struct dpdk_err){.text = err, .size = err_bytes});
    pthread_mutex_unlock(&mn_dpdk_lock);
    return rc;
}

void mn_dpdk_fini(void)
{
    if (!started || mn_dpdk_forked()) {
        return;
    }
    mn_dpdk_watch_stop();
    pthread_mutex_lock(&mn_dpdk_lock);
    if (mn_dpdk_ports == NULL) {
        (void)rte_eal_cleanup();
        started = false;
    }
    pthread_mutex_unlock(&mn_dpdk_lock);
}

/* ---- devices --------------------------------------------------------------------------------- */

const char *mn_dpdk_devargs_of(const char *device)
{
    for (const struct plugged *p = plugged; p != NULL; p = p->next) {
        if (strcmp(p->device, device) == 0) {
            return p->devargs;
        }
    }
    return NULL;
}

static void note_plugged(const char *device, const char *devargs)
{
    struct plugged *p = calloc(1, sizeof(*p));

    if (p != NULL) {
        (void)snprintf(p->device, sizeof(p->device), "%s", device);
        (void)snprintf(p->devargs, sizeof(p->devargs), "%s", devargs);
        p->next = plugged;
        plugged = p;
    }
}

static void forget_plugged(const char *device)
{
    for (struct plugged **at = &plugged; *at != NULL; at = &(*at)->next) {
        struct plugged *p = *at;

        if (strcmp(p->device, device) == 0) {
            *at = p->next;
            free(p);
            return;
        }
    }
}

static struct rte_device *device_of(uint16_t port)
{
    struct rte_eth_dev_info info;

    return rte_eth_dev_info_get(port, &info) == 0 ? info.device : NULL;
}

static uint32_t ports_matching(const char *devargs, uint16_t *ports, uint32_t n)
{
    struct rte_dev_iterator it;
    uint16_t port;
    uint32_t got = 0;

    RTE_ETH_FOREACH_MATCHING_DEV(port, devargs, &it)
    {
        if (got == n) {
            rte_eth_iterator_cleanup(&it);
            break;
        }
        ports[got++] = port;
    }
    return got;
}

int mn_dpdk_probe_locked(const char *devargs, uint16_t *ports, uint32_t n,
                         const struct dpdk_err *err)
{
    struct rte_device *device;
    uint32_t got;
    int rc;

    if (!started) {
        return mn_dpdk_fail(err, -EPERM, "EAL has not been started");
    }
    if (strlen(devargs) >= sizeof(plugged->devargs)) {
        return mn_dpdk_fail(err, -ENAMETOOLONG, "a device of more than %zu characters",
                            sizeof(plugged->devargs) - 1);
    }
    rc = rte_dev_probe(devargs);
    if (rc == -EFAULT) {
        return mn_dpdk_fail(err, -ENODEV, "%s: no bus or driver of DPDK has that name", devargs);
    }
    if (rc == -EPERM) { /* -1: what drivers return when they have nothing better to say */
        return mn_dpdk_fail(err, rc, "%s: its driver refuses it", devargs);
    }
    if (rc < 0) {
        return mn_dpdk_fail(err, rc, "%s: %s", devargs, rte_strerror(-rc));
    }
    got = ports_matching(devargs, ports, n);
    if (got == 0) {
        return mn_dpdk_fail(err, -ENODEV, "%s: it is there, but no driver made a port of it",
                            devargs);
    }
    device = device_of(ports[0]);
    if (device != NULL) {
        forget_plugged(rte_dev_name(device));
        note_plugged(rte_dev_name(device), devargs);
    }
    return (int)got;
}

int mn_dpdk_probe(const char *devargs, uint16_t *ports, uint32_t n, char *err, size_t err_bytes)
{
    int rc;

    if (mn_dpdk_forked()) {
        return mn_dpdk_not_ours(err, err_bytes);
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    rc =
        mn_dpdk_probe_locked(devargs, ports, n, &(struct dpdk_err){.text = err, .size = err_bytes});
    pthread_mutex_unlock(&mn_dpdk_lock);
    return rc;
}

int mn_dpdk_unprobe_locked(uint16_t port)
{
    struct rte_device *device = device_of(port);
    char name[MN_DPDK_NAME_BYTES];
    struct dpdk_pair *pair;
    int rc;

    if (device == NULL) {
        return -ENODEV;
    }
    for (const struct mn_dpdk *d = mn_dpdk_ports; d != NULL; d = d->next) {
        if (d->device == device) {
            return -EBUSY;
        }
    }
    (void)snprintf(name, sizeof(name), "%s", rte_dev_name(device));
    forget_plugged(name);
    pair = mn_dpdk_pair_of(port);
    rc = rte_dev_remove(device);
    mn_dpdk_free_left(port);
    if (pair != NULL) {
        mn_dpdk_pair_left(pair, port);
    }
    return rc;
}

int mn_dpdk_unprobe(uint16_t port)
{
    int rc;

    if (mn_dpdk_forked()) {
        return -ECHILD;
    }
    pthread_mutex_lock(&mn_dpdk_lock);
    rc = mn_dpdk_unprobe_locked(port);
    pthread_mutex_unlock(&mn_dpdk_lock);
    return rc;
}

int mn_dpdk_port_mac(uint16_t port, uint8_t mac[6])
{
    struct rte_ether_addr addr;
    int rc = rte_eth_macaddr_get(port, &addr);

    if (rc == 0) {
        memcpy(mac, addr.addr_bytes, sizeof(addr.addr_bytes));
    }
    return rc == 0 ? 0 : -ENODEV;
}
