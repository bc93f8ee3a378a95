/* The programs run as children, for tests that use them as their users do. Lists of arguments end with NULL. */
#ifndef GQAKIT_TESTS_PROGRAMS_H
#define GQAKIT_TESTS_PROGRAMS_H

#include "harness.h"

struct child program_run(const char *name, const char *const *arguments);
#define CONVERT(...) program_run("gqa-convert", (const char *const[]){ __VA_ARGS__, NULL })
#define UPTRAIN(...) program_run("gqa-uptrain", (const char *const[]){ __VA_ARGS__, NULL })
#define EVAL(...) program_run("gqa-eval", (const char *const[]){ __VA_ARGS__, NULL })

#define CONVERT_OK(...) program_ok(CONVERT(__VA_ARGS__))

void program_ok(struct child c);                                    /* exit 0, or the test fails with what it said; frees */
json_t *program_json(struct child c);                               /* the same; its stdout as JSON */
void program_refused(struct child c, int status, const char *part); /* this exit status, `part` on stderr; frees */
double json_number_at(const json_t *j, const char *key);            /* fails when absent */

#endif
