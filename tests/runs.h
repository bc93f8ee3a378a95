/* Runs of gqa-uptrain on a tiny random model (H=6, G=3, D=8, C=24, 2 layers, byte text made here) for the tests that need one. They run
 * where GQAKIT_TEST_DEVICE says (harness.h). */
#ifndef GQAKIT_TESTS_RUNS_H
#define GQAKIT_TESTS_RUNS_H

#include "harness.h"

#include "checkpoints/checkpoint.h"

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

void runs_text(const char *name, uint64_t seed, int n); /* n random words into a file of the temporary directory */
char *runs_config(void);                                /* path of the config: 12 steps, warm-up 4, clip 0.5, one thread */
/* gqa-uptrain CONFIG output_dir=TEMP/out ARGS...; args and env end with NULL, may be NULL. */
struct child runs_start(const char *out, const char *const *args, const char *const *env);
/* Fails unless the exit status is this and stderr contains part; frees the child. */
void runs_expect(struct child *c, int status, const char *part);
void runs_train(const char *out, const char *const *args); /* start, expect 0 */
char *runs_path(const char *out, const char *name);        /* TEMP/out/name; free by the caller */
const char *runs_weights(const char *out);                 /* sha256 of final/model.safetensors; four may be held at once */
json_t *runs_log(const char *out);                         /* the lines of log.jsonl */
double runs_number(const json_t *line, const char *key);   /* NaN when absent or null */
float *runs_read(const char *path, int64_t *n);            /* every tensor of a checkpoint, one after another */
void runs_step(const char *out, int step, const char *name, float *dst, int64_t n0, int64_t n1); /* one array of a step directory */

#endif
