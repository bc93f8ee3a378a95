/* GPT-J (Wang, Komatsuzaki 2021).
 *   x + out_proj(attention(n x)) + mlp(n x), one norm; q, k, v, out without biases; an untied head with a bias
 * Rotary turns the pairs (0, 1), (2, 3) ... of the first rotary_dim dimensions of a head: the files' rows are interleaved, the
 * canonical ones are not (Su et al. 2021; theta is 10000). */
#include "family_gpt.h"

static const char *const TYPES[] = {"gptj", NULL};
static const char *const KEYS[] = {GPT_KEYS_DIMS, "rotary_dim", "activation_function", "layer_norm_epsilon",
                                   "scale_attn_weights", "rotary", "window_size" /* of GPT-Neo, unused */, GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {GPT_DIMS, .V_absent = 50400, .C_absent = 4096, .L_absent = 28, .H_absent = 16, .P_absent = 2048};
static const struct gpt_only ONLY[] = {{"scale_attn_weights", "true"}, {"rotary", "true"}};

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "transformer.wte.weight",
    [T_ATTN_NORM_W] = "ln_1.weight", [T_ATTN_NORM_B] = "ln_1.bias",
    [T_Q_W] = "attn.q_proj.weight", [T_K_W] = "attn.k_proj.weight", [T_V_W] = "attn.v_proj.weight", [T_O_W] = "attn.out_proj.weight",
    [T_UP_W] = "mlp.fc_in.weight", [T_UP_B] = "mlp.fc_in.bias",
    [T_DOWN_W] = "mlp.fc_out.weight", [T_DOWN_B] = "mlp.fc_out.bias",
    [T_FINAL_NORM_W] = "transformer.ln_f.weight", [T_FINAL_NORM_B] = "transformer.ln_f.bias",
    [T_HEAD_W] = "lm_head.weight", [T_HEAD_B] = "lm_head.bias",
};

static enum code gptj_read(struct arch *a, const json_t *config, const char *where)
{
    TRY(gpt_read(a, config, where, &DIMS, GPT_ALIASES, "layer_norm_epsilon", 50256, 50256));
    TRY(family_act_read(a, config, where, "activation_function", "gelu_new", 0));
    TRY(gpt_only_check(config, where, ONLY, sizeof ONLY / sizeof *ONLY));
    const json_t *dims = json_object_get(config, "rotary_dim");
    if (json_is_null(dims))
        return fail(ERR_UNSUPPORTED, "%s: \"rotary_dim\": null is not supported", where);
    a->rope.dims = 64;
    TRY(json_want_i64(config, where, "rotary_dim", 2, INT32_MAX, &a->rope.dims));
    a->pos = POS_ROPE;
    a->rope.theta = 10000;
    a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    a->bias = BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM | BIAS_HEAD;
    a->tied = 0;
    return OK;
}

static void gptj_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    family_place_named(p, t, NAMES, "transformer.h.%lld.");
    if (t->slot == T_Q_W || t->slot == T_K_W) {
        p->head = a->stack[STACK_DEC].block[t->layer].D;
        p->rotary = a->rope.dims;
    }
}

static enum code gptj_fresh(const struct arch *a, json_t *config)
{
    TRY(gpt_fresh_begin(a, config, "GPTJForCausalLM", "gptj", &DIMS, "activation_function", "layer_norm_epsilon"));
    json_object_set_new(config, "rotary_dim", json_integer(a->rope.dims));
    return family_fresh_end(a, config);
}

const struct family family_gptj = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = gptj_read,
    .place = gptj_place,
    .ignores = gpt_ignores,
    .fresh = gptj_fresh,
    .holds = gpt_holds_mha,
};
