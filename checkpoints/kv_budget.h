/* A K/V budget as users give it: all layers' K/V bytes per token, as a share of the source's ("25%") or in bytes ("2048"). gqa-convert chooses
 * under it how many heads each layer keeps; the programs that run gqa-convert check it here before they do. Included by checkpoint.h. */
#ifndef GQAKIT_CHECKPOINTS_KV_BUDGET_H
#define GQAKIT_CHECKPOINTS_KV_BUDGET_H

#include "arch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `text`: "50%" of `most`, or bytes. ERR_USAGE with what is possible, beginning with `name`, the flag or key it was given by. */
enum code kv_budget_parse(int64_t *bytes, const char *name, const char *text, int64_t most, int64_t least) MUST_USE;
/* The same for a model whose result is stored in this type: at most all its heads, at least one in every layer. */
enum code kv_budget_of(int64_t *bytes, const char *name, const char *text, const struct arch *source, enum dtype type) MUST_USE;
/* Before anything is measured: heads that stay within `bytes`, as even over the layers as legal counts allow. What such a model takes is what
 * one with the heads chosen by error takes, or a little more. `a` is a copy of the source. */
void kv_budget_spread(struct arch *a, const struct arch *source, int64_t bytes, enum dtype type);
/* The source with one head in its first layer and all in the others: what can hold it can hold any choice. *differs = 0: there is one layer,
 * or no choice in the first, and every choice is one number. arch_free(a) */
enum code kv_budget_uneven(struct arch *a, int *differs, const struct arch *source) MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
