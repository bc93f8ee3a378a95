/* An architecture in words: what differs between families that the sizes do not say. One line of text, parts separated by commas. */
#include "convert.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *word(const json_t *j, const char *key)
{
    const char *text = json_string_value(json_object_get(j, key));
    return text ? text : "";
}

static const char *norm_word(enum norm_kind k)
{
    static const char *const names[] = { [NORM_RMS] = "RMSNorm", [NORM_RMS1P] = "RMSNorm (1 + w)", [NORM_LAYER] = "LayerNorm", [NORM_LAYER_NOP] = "LayerNorm without weights" };
    return names[k];
}

static void print_positions(const struct arch *a, const json_t *j)
{
    const struct arch_rope *r = &a->rope;
    int64_t D = a->stack[STACK_DEC].block[0].D;
    switch (a->pos) {
    case POS_ROPE:
        printf("rotary positions (");
        if (r->dims < D)
            printf("%lld of %lld dimensions, ", (long long)r->dims, (long long)D);
        printf("theta %g", r->theta);
        if (r->kind != ROPE_DEFAULT)
            printf(", %s", word(json_object_get(j, "rope"), "kind"));
        printf(")");
        break;
    case POS_ALIBI: printf(a->alibi_scaled ? "ALiBi (scaled with the scores)" : "ALiBi"); break;
    case POS_LEARNED: printf("learned positions"); break;
    default: printf("positions %s", word(j, "pos"));
    }
}

static void print_windows(const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int64_t layers = 0, window = 0;
    for (int64_t l = 0; l < s->L; l++)
        if (s->block[l].window) {
            window = s->block[l].window;
            layers++;
        }
    if (layers)
        printf(", a window of %lld in %lld of %lld layers", (long long)window, (long long)layers, (long long)s->L);
}

/* Where it is not 1 / sqrt(head width) everywhere. */
static void print_scale(const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    double first = s->block[0].scale > 0 ? s->block[0].scale : a->attn_scale;
    int same = 1;
    for (int64_t l = 0; l < s->L; l++)
        same &= (s->block[l].scale > 0 ? s->block[l].scale : a->attn_scale) == first;
    if (!same)
        printf(", a softmax scale for each layer");
    else if (fabs(first * sqrt((double)s->block[0].D) - 1) > 1e-6)
        printf(", softmax scale %g", first);
}

static void print_biases(const json_t *j)
{
    const json_t *list = json_object_get(j, "bias");
    printf(json_array_size(list) ? ", biases of" : ", no biases");
    for (size_t i = 0; i < json_array_size(list); i++)
        printf(" %s", json_string_value(json_array_get(list, i)));
}

void describe(const struct arch *a)
{
    static const char *const places[] = { [NORM_PRE] = "before", [NORM_POST_SUBLAYER] = "behind", [NORM_POST_RESIDUAL] = "behind the residual of" };
    static const char *const residuals[] = { [RESIDUAL_SEQUENTIAL] = "one sublayer after the other", [RESIDUAL_PARALLEL_ONE_NORM] = "both sublayers from one norm",
                                             [RESIDUAL_PARALLEL_TWO_NORMS] = "both sublayers side by side" };
    json_t *j = arch_to_json(a);
    printf("%s %s each sublayer, %s, ", norm_word(a->norm), places[a->norm_place], residuals[a->residual]);
    print_positions(a, j);
    print_windows(a);
    print_scale(a);
    printf(", %s MLP", word(j, "mlp"));
    print_biases(j);
    if (a->qk_norm != QK_NORM_NONE)
        printf(", norms of queries and keys (%s)", a->qk_norm == QK_NORM_HEAD ? "one for all heads" : a->qk_norm == QK_NORM_FULL ? "over all heads together" : "one per head");
    if (a->clip_qkv > 0)
        printf(", projections clipped at %g", a->clip_qkv);
    if (a->embed_scale < 1 || a->embed_scale > 1)
        printf(", embedding times %g", a->embed_scale);
    if (a->embed_norm)
        printf(", a norm behind the embedding");
    if (a->embed_proj)
        printf(", an embedding of width %lld", (long long)a->embed_proj);
    printf(", %s\n", a->tied ? "head tied to the embedding" : "head of its own");
    json_decref(j);
}
