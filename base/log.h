/* What people read while a program runs: all on stderr. Lines are prefixed "gqakit: " only for warnings. NO_COLOR and
 * non-terminals get plain text. A progress line is redrawn with \r on a terminal, else printed every 10 seconds. */
#ifndef GQAKIT_BASE_LOG_H
#define GQAKIT_BASE_LOG_H

#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

void log_quiet(int quiet); /* 1: info and progress are silent, warnings stay */
int log_is_quiet(void);
void log_info(const char *format, ...) PRINTF_LIKE(1, 2);
void log_warn(const char *format, ...) PRINTF_LIKE(1, 2);

struct progress {
    const char *title;
    int64_t total; /* units of work; <= 0 unknown */
    int64_t done;
    double started, drawn;
    int shown;
};
void progress_begin(struct progress *p, const char *title, int64_t total);
/* title 120/2000 6% TEXT eta 00:41:10; TEXT is the caller's, may be NULL. */
void progress_update(struct progress *p, int64_t done, const char *text);
void progress_end(struct progress *p); /* clears or ends the line */

void format_bytes(char out[16], double bytes);       /* "1.5 GiB" */
void format_count(char out[16], double n);           /* "12.4k" */
void format_duration(char out[16], double seconds);  /* "00:41:10", days as "2d 03:00:00" */

#ifdef __cplusplus
}
#endif
#endif
