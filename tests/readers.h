/* Every reader of bytes from outside, each with a small good file and a sum of all that was read: for tests in which memory runs out
 * (test_memory_read.c) or a disk fails (test_read_faults.c). What is read then is what is read otherwise, or it is refused for that reason. */
#ifndef GQAKIT_TESTS_READERS_H
#define GQAKIT_TESTS_READERS_H

#include "damage.h"

struct reader {
    const char *name, *file; /* below the temporary directory */
    enum code (*read)(const char *path, uint64_t *sum);
    int cases; /* of allocations that fail, about, without GQAKIT_SOAK=1 */
};
struct readers { const struct reader *v; size_t n; };

/* The first call writes the files. */
struct readers readers_models(void); /* readers_model.c */
struct readers readers_runs(void);
struct readers readers_configs(void);
struct readers readers_tokens(void); /* readers_data.c */
struct readers readers_others(void);
struct readers readers_tokenizers(void); /* readers_tokenizers.c */

/* Reads now; OK when the sum is `want`, ERR_NUMERIC when it is another. */
enum code reader_again(const struct reader *r, uint64_t want);
uint64_t reader_sum(const struct reader *r); /* of a reading that must succeed */

#endif
