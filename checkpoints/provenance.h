/* PROVENANCE.json of a result directory: where it came from, and a hash of every file so that --verify can tell damage.
 * {"schema": "gqakit/provenance/1", FACTS..., "outputs": [{"path", "bytes", "xxh128"}], "digest": of all the rest}. XXH3-128 because a conversion must
 * stay near the speed of copying; inputs are recorded by SHA-256 in FACTS, as model hubs show them. */
#ifndef GQAKIT_CHECKPOINTS_PROVENANCE_H
#define GQAKIT_CHECKPOINTS_PROVENANCE_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Hashes every regular file of dir (PROVENANCE.json itself excepted) and writes dir/PROVENANCE.json atomically. `facts` (an
 * object, its keys copied before "outputs") may be NULL. */
enum code provenance_write(const char *dir, const json_t *facts) MUST_USE;
/* Re-hashes what dir/PROVENANCE.json lists, the optimizer's moments (FACTS "optimizer": {"manifest", "sha256"}) by their own manifest too. ERR_INPUT names the first file that is missing or differs. */
enum code provenance_verify(const char *dir, int *files_checked) MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
