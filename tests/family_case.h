/* What must hold for every model family, from a table of configs: the arch it reads, the tensors it expects in the file, its own
 * config.json written anew and read back, an edit of the key/value heads that touches nothing else, and weights written and read
 * bit for bit. */
#ifndef GQAKIT_TESTS_FAMILY_CASE_H
#define GQAKIT_TESTS_FAMILY_CASE_H

#include "checkpoints/checkpoint.h"
#include "harness.h"

struct family_case {
    const char *config;
    const char *arch;    /* members of arch_to_json that must be so; of objects only those named, of "decoder" each element of "blocks"
                          * likewise. Single quotes stand for double ones, in config too. */
    const char *tensors; /* NULL: not looked at. Else the file's tensors outside the layers and of layer 0, as "name[2,3] ...": all, in any order */
};
struct family_refusal { const char *config; enum code code; const char *part; };

/* Runs every check on every case; names the case that fails. */
void family_cases_check(const struct family_case *cases, size_t n);
void family_refusals_check(const struct family_refusal *refusals, size_t n);

/* One config with single quotes for double ones -> arch; the caller frees. */
enum code family_config(struct arch *a, const char *config);

#endif
