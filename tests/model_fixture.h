/* A tiny model beside its double reference, with the same weights and a packed batch. Shapes that see mistakes: C=24, H=6, G=3,
 * D=8 (H*D != C), F=20, V=37, L=2, B=2, T=11. */
#ifndef GQAKIT_TESTS_MODEL_FIXTURE_H
#define GQAKIT_TESTS_MODEL_FIXTURE_H

#include "harness.h"
#include "model/model.h"
#include "reference/transformer.h"

enum { TINY_B = 2, TINY_T = 11 };

struct tiny {
    struct arch arch;
    struct reference_model ref;
    const struct backend *be;
    struct device *dev;
    struct model *m;
    struct batch batch; /* packed documents, two masked targets; positions restart */
    int64_t valid;
};

void fixture_arch(struct arch *a); /* LLaMA layout, tied head */
struct model_options tiny_options(int train);
/* Takes over the arch. The model holds the reference's weights (f32 exactly). */
void tiny_open(struct tiny *t, struct arch *arch, const struct model_options *options);
void tiny_close(struct tiny *t);
void tiny_upload(const struct tiny *t); /* the reference's tensors to the model again */
double tiny_reference_loss(const struct tiny *t, double *logp);

#endif
