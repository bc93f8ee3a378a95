/* See interrupt.h. */
#include "base/interrupt.h"

#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t asked, checked, child;
static struct timespec asked_at;

static void on_stop(int n, siginfo_t *info, void *context)
{
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double since = (double)(now.tv_sec - asked_at.tv_sec) + 1e-9 * (double)(now.tv_nsec - asked_at.tv_nsec);
    if (asked && since > 0.2)
        _exit(128 + n);
    if (!asked) {
        asked = n;
        asked_at = now;
    }
    if (child > 0 && info->si_code <= 0)
        kill((pid_t)child, n);
}

enum how { WATCHED, IGNORED, DEFAULT };
static void install(int n, enum how how)
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_flags = SA_RESTART;
    sigemptyset(&a.sa_mask);
    if (how != WATCHED)
        a.sa_handler = how == IGNORED ? SIG_IGN : SIG_DFL;
    else {
        a.sa_sigaction = on_stop;
        a.sa_flags |= SA_SIGINFO;
        sigaddset(&a.sa_mask, SIGINT);
        sigaddset(&a.sa_mask, SIGTERM);
        sigaddset(&a.sa_mask, SIGHUP);
    }
    sigaction(n, &a, NULL);
}

static void watch(int n)
{
    struct sigaction now;
    if (!sigaction(n, NULL, &now) && ((now.sa_flags & SA_SIGINFO) || now.sa_handler != SIG_IGN))
        install(n, WATCHED);
}

void interrupt_quiet(void)
{
    install(SIGPIPE, IGNORED);
    install(SIGXFSZ, IGNORED);
}

void interrupt_watch(void)
{
    watch(SIGINT);
    watch(SIGTERM);
}

int interrupt_asked(void) { return (int)asked; }

void interrupt_child(pid_t pid)
{
    child = pid;
    if (pid > 0 && asked)
        kill(pid, SIGTERM);
}

void interrupt_install(void)
{
    interrupt_quiet();
    interrupt_watch();
    watch(SIGHUP);
    checked = 1;
}

enum code interrupt_check(void)
{
    return checked && asked ? fail(ERR_STOPPED, "by signal %d (%s); nothing was written", (int)asked, strsignal((int)asked)) : OK;
}

void interrupt_end(void)
{
    int n = (int)asked;
    if (!n)
        return;
    install(n, DEFAULT);
    raise(n);
}
