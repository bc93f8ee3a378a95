/* Stop signals. The first SIGINT or SIGTERM only sets a flag, which the program looks at where it can end well; a second one ends it at once
 * (within a fifth of a second it is the same wish, sent to the process and to its group). A closed pipe and a file size limit are errors of
 * write, no signals. */
#ifndef GQAKIT_BASE_INTERRUPT_H
#define GQAKIT_BASE_INTERRUPT_H

#include <sys/types.h>

#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

void interrupt_quiet(void);      /* SIGPIPE and SIGXFSZ become errors of write */
void interrupt_watch(void);      /* handlers for SIGINT and SIGTERM, unless they are ignored (nohup, a shell's &) */
int interrupt_asked(void);       /* the signal that asked for a stop; 0 none */
void interrupt_child(pid_t pid); /* gets what another process sends us (a terminal sends to both); 0: none */

/* For a program that has no state to save (gqa-convert): both, and interrupt_check tells. SIGHUP stops it too. */
void interrupt_install(void);
/* ERR_STOPPED once a signal has asked; always OK without interrupt_install. Looked at before every block that is read or written. */
enum code interrupt_check(void) MUST_USE;
/* For main, after all is cleaned up and said: ends the process by the signal that stopped it, so that its parent knows. Returns when none did. */
void interrupt_end(void);

#ifdef __cplusplus
}
#endif
#endif
