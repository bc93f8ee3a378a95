/* See signals.h. The handlers only set flags; the loop looks at them between steps, the evaluation between batches. */
#include "signals.h"

#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop_signal, save_wanted;

static void on_stop(int n)
{
    if (stop_signal)
        _exit(128 + n);
    stop_signal = n;
}

static void on_save(int n)
{
    (void)n;
    save_wanted = 1;
}

static void install(int n, void (*handler)(int))
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = handler;
    a.sa_flags = SA_RESTART;
    sigemptyset(&a.sa_mask);
    sigaction(n, &a, NULL);
}

void signals_install(void)
{
    install(SIGPIPE, SIG_IGN);
    install(SIGINT, on_stop);
    install(SIGTERM, on_stop);
    install(SIGHUP, on_save);
    install(SIGUSR1, on_save);
}

int signals_stop(void)
{
    return (int)stop_signal;
}

int signals_take_save(void)
{
    int wanted = (int)save_wanted;
    save_wanted = 0;
    return wanted;
}
