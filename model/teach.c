/* Distillation: a teacher beside the model, and what a teacher is asked for when its probabilities are kept on disk. */
#include "parts.h"

void model_teach(struct model *m, const struct model_teacher *teacher)
{
    m->teacher = teacher;
}

enum code model_topk(struct model *m, const struct batch *b, float temperature, struct view ids, struct view logp)
{
    (void)b;
    (void)temperature;
    CHECK(ids.n[1] == logp.n[1] && ids.n[1] <= m->options.topk);
    return fail(ERR_UNSUPPORTED, "the most likely tokens are not implemented yet");
}
