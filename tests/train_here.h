/* gqa-uptrain inside the test, on a backend of the test's choice. A program that uses this is linked with the parts of uptrain/
 * (INSIDE_OBJ in the Makefile). The config is runs_config(). */
#ifndef GQAKIT_TESTS_TRAIN_HERE_H
#define GQAKIT_TESTS_TRAIN_HERE_H

#include "uptrain/run.h"

struct train_here {
    const struct backend *backend;
    const char *out;         /* below the temporary directory */
    const char *const *args; /* key=value; NULL-terminated, or NULL */
    int64_t stop_at;         /* ends after this step as if the budget ended, the schedule unchanged; 0: the whole run */
};

/* Everything up to the first step (resumed where it says so): then trainer_run, final_write. */
enum code train_here_open(struct run *r, const struct train_here *t) MUST_USE;
void train_here_close(struct run *r);
/* Opens, trains, writes final/ when the run is whole, closes. */
enum code train_here(const struct train_here *t) MUST_USE;

#endif
