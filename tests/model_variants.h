/* Small architectures in the shape of the families that model/ must run: every residual form, place of norms, kind of position and
 * change of the projections at least once, and the combinations that families use. */
#ifndef GQAKIT_TESTS_MODEL_VARIANTS_H
#define GQAKIT_TESTS_MODEL_VARIANTS_H

#include "checkpoints/checkpoint.h"

struct model_variant {
    const char *name;
    void (*change)(struct arch *a); /* of fixture_arch's result */
};
extern const struct model_variant MODEL_VARIANTS[];
int model_variants(void); /* how many */

#endif
