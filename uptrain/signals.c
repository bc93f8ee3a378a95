/* See signals.h. The handlers only set flags; the loop looks at them between steps, the evaluation between batches. */
#include "signals.h"

#include <signal.h>
#include <stddef.h>
#include <string.h>

#include "base/base.h"

static volatile sig_atomic_t save_wanted;

static void on_save(int n)
{
    (void)n;
    save_wanted = 1;
}

static void install_save(int n)
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = on_save;
    a.sa_flags = SA_RESTART;
    sigemptyset(&a.sa_mask);
    sigaction(n, &a, NULL);
}

void signals_install(void)
{
    interrupt_quiet();
    interrupt_watch();
    install_save(SIGHUP);
    install_save(SIGUSR1);
}

int signals_stop(void)
{
    return interrupt_asked();
}

int signals_take_save(void)
{
    int wanted = (int)save_wanted;
    save_wanted = 0;
    return wanted;
}
