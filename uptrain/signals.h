/* Signals of a training run: SIGINT and SIGTERM ask for a stop after the current step (base/interrupt.h), SIGHUP and SIGUSR1 ask for a checkpoint, SIGPIPE is ignored. */
#ifndef GQAKIT_UPTRAIN_SIGNALS_H
#define GQAKIT_UPTRAIN_SIGNALS_H

void signals_install(void);
int signals_stop(void);       /* the signal that asked for a stop, 0 when none */
int signals_take_save(void);  /* 1 once after a request to save */

#endif
