/* The likeliest tokens of each row. */
#include "cpu.h"

size_t cpu_topk_scratch(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K)
{
    (void)dev, (void)N, (void)C, (void)V, (void)K;
    return 0;
}

enum code cpu_topk(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, float logit_scale,
                   float logit_softcap, float temperature, void *scratch)
{
    (void)dev, (void)ids, (void)logp, (void)x, (void)w, (void)bias, (void)logit_scale, (void)logit_softcap, (void)temperature, (void)scratch;
    return fail(ERR_UNSUPPORTED, "topk: the CPU backend does not choose tokens yet");
}
