/* struct arch: tensors, checks, counts, copies, JSON; and config.json of the llama family in and out. */
#include "harness.h"

#include <math.h>

#include "checkpoints/checkpoint.h"

#define HEAD "\"model_type\": \"llama\", \"hidden_size\": 48, \"intermediate_size\": 64, \"num_hidden_layers\": 2, " \
             "\"num_attention_heads\": 6, \"vocab_size\": 11, \"num_key_value_heads\": 3"
#define HEAD_MISTRAL "\"model_type\": \"mistral\", \"hidden_size\": 48, \"intermediate_size\": 64, \"num_hidden_layers\": 2, " \
                     "\"num_attention_heads\": 8, \"vocab_size\": 11"

#define assert_close(got, want, tolerance) assert_true(fabs((got) - (want)) <= (tolerance))

static enum code config(struct arch *a, const char *text) { return arch_from_config_json(a, text, strlen(text), "config.json"); }

static void refused(const char *text, enum code code, const char *part)
{
    struct arch a;
    assert_refused(config(&a, text), code, part);
}

/* rows 0: the tensor is absent. */
static void assert_shape(const struct tensor_spec *t, int n, const char *name, int64_t rows, int64_t columns)
{
    int64_t found[2] = {0, 0};
    for (int i = 0; i < n; i++)
        if (!strcmp(t[i].name, name)) {
            found[0] = t[i].n[0];
            found[1] = t[i].n[1];
        }
    assert_int_equal(found[0], rows);
    assert_int_equal(found[1], columns);
}

static void test_tensors_in_memory_order(void **state)
{
    (void)state;
    struct arch a;
    struct tensor_spec *t;
    int n;
    assert_ok(config(&a, "{" HEAD ", \"head_dim\": 10, \"attention_bias\": true, \"mlp_bias\": true}"));
    assert_ok(arch_tensors(&a, &t, &n));
    static const char *const want[] = {"embed.weight", "dec.0.attn_norm.w", "dec.0.attn.q.w", "dec.0.attn.k.w", "dec.0.attn.v.w",
        "dec.0.attn.q.b", "dec.0.attn.k.b", "dec.0.attn.v.b", "dec.0.attn.o.w", "dec.0.attn.o.b", "dec.0.mlp_norm.w", "dec.0.mlp.gate.w",
        "dec.0.mlp.up.w", "dec.0.mlp.gate.b", "dec.0.mlp.up.b", "dec.0.mlp.down.w", "dec.0.mlp.down.b", "dec.1.attn_norm.w"};
    for (size_t i = 0; i < COUNT_OF(want); i++)
        assert_string_equal(t[i].name, want[i]);
    assert_int_equal(n, 1 + 2 * 16 + 2);
    assert_string_equal(t[n - 2].name, "dec.final_norm.w");
    assert_string_equal(t[n - 1].name, "head.w");
    assert_int_equal(t[3].n[0], 30); /* k: G * D, not C / H */
    assert_int_equal(t[3].n[1], 48);
    assert_int_equal(t[3].pool, POOL_KV);
    assert_int_equal(t[3].decay, 1);
    assert_int_equal(t[6].nd, 1);
    assert_int_equal(t[6].decay, 0);
    assert_int_equal(t[8].n[1], 60); /* o: [C, H * D] */
    int64_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += t[i].n[0] * t[i].n[1];
    assert_int_equal(arch_parameters(&a), sum);
    assert_int_equal(arch_kv_bytes_per_token(&a, 0, DT_BF16), 2 * 3 * 20 * 2);
    assert_int_equal(arch_kv_bytes_per_token(&a, 1, DT_F32), 2 * 1 * 20 * 4);
    int64_t groups[8];
    assert_int_equal(arch_legal_groups(&a, groups, 8), 2);
    assert_int_equal(groups[0], 3);
    assert_int_equal(groups[1], 1);
    assert_int_equal(arch_legal_groups(&a, groups, 1), 1);
    free(t);

    a.pos = POS_LEARNED;
    a.pos_offset = 2;
    a.norm = NORM_LAYER;
    a.mlp = MLP_GELU_TANH;
    a.bias |= BIAS_NORM | BIAS_HEAD;
    a.residual = RESIDUAL_PARALLEL_ONE_NORM;
    a.stack[STACK_DEC].block[1].G = 6;
    assert_ok(arch_tensors(&a, &t, &n));
    assert_string_equal(t[1].name, "pos.weight");
    assert_int_equal(t[1].n[0], a.max_positions + 2);
    assert_string_equal(t[3].name, "dec.0.attn_norm.b");
    for (int i = 0; i < n; i++)
        assert_null(strstr(t[i].name, "gate"));
    assert_string_equal(t[n - 1].name, "head.b");
    free(t);
    assert_int_equal(arch_legal_groups(&a, groups, 8), 2);
    a.qk_norm = QK_NORM_FULL;
    a.embed_norm = 1;
    a.embed_proj = 8;
    a.norm_place = NORM_POST_RESIDUAL;
    assert_ok(arch_tensors(&a, &t, &n));
    assert_shape(t, n, "embed.weight", a.V, 8);
    assert_shape(t, n, "embed_proj_in.w", a.C, 8);
    assert_shape(t, n, "embed_proj_out.w", 8, a.C);
    assert_shape(t, n, "embed_norm.b", a.C, 1);
    assert_shape(t, n, "dec.1.attn.q_norm.w", a.stack[STACK_DEC].block[1].H * a.stack[STACK_DEC].block[1].D, 1);
    assert_shape(t, n, "dec.1.attn.k_norm.w", 6 * a.stack[STACK_DEC].block[1].D, 1);
    assert_shape(t, n, "dec.final_norm.w", 0, 0);
    free(t);
    a.pos = POS_REL_BIAS;
    assert_refused(arch_tensors(&a, &t, &n), ERR_UNSUPPORTED, "tensor table");
    a.pos = POS_LEARNED;
    a.stack[STACK_ENC].present = 1;
    assert_refused(arch_tensors(&a, &t, &n), ERR_UNSUPPORTED, "encoder");
    assert_int_equal(arch_parameters(&a), 0);
    a.stack[STACK_ENC].present = 0;
    arch_free(&a);
}

static void test_checks(void **state)
{
    (void)state;
    struct arch a;
    assert_refused(arch_init(&a, 0), ERR_INPUT, "number of layers");
    assert_refused(arch_init(&a, (int64_t)1 << 40), ERR_INPUT, "number of layers");
    assert_ok(config(&a, "{" HEAD "}"));
    struct arch_block *b = &a.stack[STACK_DEC].block[1];
#define BREAK(member, value, part)                                                 \
    do {                                                                           \
        __typeof__(member) old = member;                                           \
        member = value;                                                            \
        assert_refused(arch_check(&a, "here"), ERR_INPUT, part);                   \
        member = old;                                                              \
    } while (0)
    assert_ok(arch_check(&a, "here"));
    BREAK(a.C, 0, "hidden_size");
    BREAK(a.V, -1, "vocab_size");
    BREAK(a.max_positions, (int64_t)1 << 40, "max_position_embeddings");
    BREAK(b->H, 0, "num_attention_heads");
    BREAK(b->G, 4, "is not a multiple of num_key_value_heads 4");
    BREAK(b->D, 0, "head_dim");
    BREAK(b->Dv, -3, "head_dim");
    BREAK(b->F, 0, "intermediate_size");
    BREAK(b->window, -1, "window");
    BREAK(b->cross, 1, "cross-attention");
    BREAK(a.rope.dims, 7, "even");
    BREAK(a.rope.dims, 10, "exceed head_dim");
    BREAK(a.rope.theta, 0, "rope_theta");
    BREAK(a.rope.kind, ROPE_LINEAR, "scaling factor");
    BREAK(a.rope.kind, ROPE_LONGROPE, "long_factor");
    BREAK(a.rope.original_max_positions, -1, "original_max_position");
    BREAK(a.rope.attention_factor, -1, "attention_factor");
    BREAK(b->scale, -1, "scale of a layer");
    BREAK(a.pos_offset, -2, "pos_offset");
    BREAK(a.embed_proj, -1, "embed_proj");
    BREAK(a.tied, 7, "tied");
    BREAK(a.clip_qkv, -1, "clip_qkv");
    BREAK(a.logit_softcap, -1, "softcap");
    BREAK(a.residual_scale, NAN, "residual scale");
    a.rope.factor = 2;
    a.rope.dims = 2;
    BREAK(a.rope.kind, ROPE_DYNAMIC, "dynamic");
    a.rope.dims = 8;
    BREAK(a.pos, POS_ALIBI, "alibi_bias_max");
    BREAK(a.norm_eps, NAN, "norm epsilon");
    BREAK(a.norm_eps, -1, "norm epsilon");
    BREAK(a.attn_scale, INFINITY, "attention scale");
    BREAK(a.stack[STACK_DEC].present, 0, "no decoder");
    BREAK(a.stack[STACK_DEC].L, 0, "num_hidden_layers");
    a.V = a.C = INT32_MAX;
    for (int l = 0; l < 2; l++)
        a.stack[STACK_DEC].block[l].F = INT32_MAX;
    assert_refused(arch_check(&a, "here"), ERR_INPUT, "overflow");
    arch_free(&a);
}

static void test_json_round_trip(void **state)
{
    (void)state;
    struct arch a, b, c;
    assert_ok(config(&a, "{" HEAD ", \"rope_theta\": 123456.7, \"rope_scaling\": {\"type\": \"longrope\", \"long_factor\": [1, 2.5, 3, 4],"
                              " \"short_factor\": [1, 1, 1, 1.1], \"factor\": 4, \"original_max_position_embeddings\": 512},"
                              " \"attention_bias\": true, \"torch_dtype\": \"bfloat16\"}"));
    a.stack[STACK_DEC].block[1].dilation = calloc(6, sizeof(int32_t));
    for (int h = 0; h < 6; h++)
        a.stack[STACK_DEC].block[1].dilation[h] = h + 1;
    a.stack[STACK_DEC].block[1].window = 5;
    assert_ok(arch_copy(&b, &a));
    arch_free(&a);
    json_t *j = arch_to_json(&b);
    char *text = json_dumps(j, 0);
    json_t *back;
    assert_ok(json_parse_object(text, strlen(text), "arch", &back));
    assert_ok(arch_from_json(&c, back, "arch"));
    json_t *again = arch_to_json(&c);
    assert_true(json_equal(j, again));
    assert_int_equal(c.stack[STACK_DEC].block[1].dilation[5], 6);
    assert_int_equal(c.rope.kind, ROPE_LONGROPE);
    assert_true(c.rope.long_factor[1] >= 2.5 && c.rope.long_factor[1] <= 2.5);
    assert_true(c.rope.theta >= 123456.7 && c.rope.theta <= 123456.7);
    assert_int_equal(c.dtype, DT_BF16);
    assert_string_equal(c.source_config, b.source_config);
    arch_free(&c);

    /* every member that is missing, of another type, or a wrong word is refused */
    const char *key;
    json_t *v;
    json_object_foreach (j, key, v) {
        if (!strcmp(key, "source_config"))
            continue;
        json_t *less = json_deep_copy(j);
        json_object_del(less, key);
        assert_refused(arch_from_json(&c, less, "arch"), ERR_INPUT, key);
        json_object_set_new(less, key, json_is_string(v) ? json_string("nonsense") : json_string("x"));
        if (strcmp(key, "family") != 0)
            assert_refused(arch_from_json(&c, less, "arch"), ERR_INPUT, key);
        json_decref(less);
    }
    json_t *bad = json_deep_copy(j);
    json_array_append_new(json_object_get(bad, "bias"), json_string("z"));
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_INPUT, "bias");
    json_array_clear(json_object_get(bad, "bias"));
    json_array_clear(json_object_get(json_object_get(bad, "rope"), "long_factor"));
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_INPUT, "long_factor");
    json_object_del(json_object_get(bad, "rope"), "long_factor");
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_INPUT, "longrope needs");
    json_object_set_new(json_object_get(bad, "rope"), "kind", json_string("default"));
    json_object_set(bad, "encoder", json_object_get(bad, "decoder"));
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_UNSUPPORTED, "encoder");
    json_object_del(bad, "encoder");
    json_t *block = json_array_get(json_object_get(json_object_get(bad, "decoder"), "blocks"), 1);
    json_array_set_new(json_object_get(block, "dilation"), 2, json_integer(0));
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_INPUT, "dilation");
    json_array_clear(json_object_get(block, "dilation"));
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_INPUT, "dilation");
    json_object_del(block, "G");
    assert_refused(arch_from_json(&c, bad, "arch"), ERR_INPUT, "\"G\"");
    json_decref(bad);
    json_decref(again);
    json_decref(back);
    json_decref(j);
    free(text);
    arch_free(&b);
}

/* ---- config.json in ----------------------------------------------------------------------------------------------- */

static void test_llama_defaults(void **state)
{
    (void)state;
    struct arch a;
    assert_ok(config(&a, "{\"model_type\": \"llama\", \"hidden_size\": 48, \"intermediate_size\": 64, \"num_hidden_layers\": 2, "
                         "\"num_attention_heads\": 6, \"vocab_size\": 11, \"num_key_value_heads\": null, \"rope_scaling\": null, "
                         "\"eos_token_id\": [7, 8], \"pad_token_id\": null, \"_anything\": {\"x\": 1}, \"future\": null}"));
    const struct arch_block *b = &a.stack[STACK_DEC].block[1];
    assert_int_equal(b->G, 6);
    assert_int_equal(b->D, 8);
    assert_int_equal(b->window, 0);
    assert_int_equal(a.max_positions, 2048);
    assert_int_equal(a.bos, 1);
    assert_int_equal(a.eos, 7);
    assert_int_equal(a.pad, -1);
    assert_int_equal(a.tied, 0);
    assert_int_equal(a.mlp, MLP_SWIGLU);
    assert_int_equal(a.dtype, DT_F32);
    assert_close(a.norm_eps, 1e-6, 1e-12);
    assert_close(a.attn_scale, 1 / sqrt(8.0), 1e-12);
    assert_int_equal(a.rope.dims, 8);
    arch_free(&a);
}

#define LLAMA3 "\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4"

/* What transformers 5 does where a config.json says a thing twice, or leaves it out (found by comparing with it). */
static void test_rope_precedence(void **state)
{
    (void)state;
    struct arch a;
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 3, \"original_max_position_embeddings\": 7}, "
                         "\"max_position_embeddings\": 99}"));
    assert_int_equal(a.rope.original_max_positions, 99);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 3}, \"rope_theta\": 5, "
                         "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 4, \"rope_theta\": 6}}"));
    assert_close(a.rope.factor, 3, 0);
    assert_close(a.rope.theta, 5, 0);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {}, \"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 4, \"rope_theta\": 6}}"));
    assert_close(a.rope.factor, 4, 0);
    assert_close(a.rope.theta, 6, 0);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"max_position_embeddings\": 99, \"rope_scaling\": {" LLAMA3 "}}"));
    assert_int_equal(a.rope.original_max_positions, 99);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"original_max_position_embeddings\": 32, \"rope_scaling\": {" LLAMA3 ", \"original_max_position_embeddings\": 16}}"));
    assert_int_equal(a.rope.original_max_positions, 32);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"type\": \"longrope\", \"factor\": 9, \"long_factor\": [1,2,3,4], \"short_factor\": [1,1,1,1]}, "
                         "\"max_position_embeddings\": 4096, \"original_max_position_embeddings\": 1024}"));
    assert_close(a.rope.factor, 9, 0);
    assert_close(a.rope.attention_factor, sqrt(1 + log(9) / log(1024)), 1e-12);
    arch_free(&a);
}

static void test_rope_kinds(void **state)
{
    (void)state;
    struct arch a;
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}"));
    assert_int_equal(a.rope.kind, ROPE_LINEAR);
    assert_close(a.rope.factor, 2, 0);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 3}, \"max_position_embeddings\": 99}"));
    assert_int_equal(a.rope.kind, ROPE_DYNAMIC);
    assert_int_equal(a.rope.original_max_positions, 99);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 5e5, \"factor\": 8, "
                         "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}}"));
    assert_int_equal(a.rope.kind, ROPE_LLAMA3);
    assert_close(a.rope.theta, 5e5, 0);
    assert_close(a.rope.high_freq_factor, 4, 0);
    assert_int_equal(a.rope.original_max_positions, 8192);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}}"));
    assert_close(a.rope.beta_fast, 32, 0);
    assert_close(a.rope.attention_factor, 0.1 * log(4) + 1, 1e-12);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0, \"mscale\": 1.0, \"mscale_all_dim\": 1.0}}"));
    assert_close(a.rope.attention_factor, 1, 1e-12);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_scaling\": {\"type\": \"su\", \"long_factor\": [1,2,3,4], \"short_factor\": [1,1,1,1]}, "
                         "\"max_position_embeddings\": 4096, \"original_max_position_embeddings\": 1024}"));
    assert_int_equal(a.rope.kind, ROPE_LONGROPE);
    assert_close(a.rope.factor, 4, 0);
    assert_close(a.rope.attention_factor, sqrt(1 + log(4) / log(1024)), 1e-12);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 77}}"));
    assert_close(a.rope.theta, 77, 0);
    arch_free(&a);
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"mrope\"}}", ERR_UNSUPPORTED, "mrope");
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"linear\"}}", ERR_INPUT, "factor");
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", ERR_INPUT, "factor");
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 1, \"twist\": 2}}", ERR_UNSUPPORTED, "twist");
    refused("{" HEAD ", \"rope_scaling\": 4}", ERR_INPUT, "rope_scaling");
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 1, \"truncate\": false}}", ERR_UNSUPPORTED, "truncate");
    refused("{" HEAD ", \"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", ERR_UNSUPPORTED, "partial");
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"longrope\", \"long_factor\": [1,2,3], \"short_factor\": [1,1,1,1]}}", ERR_INPUT, "long_factor");
    refused("{" HEAD ", \"rope_scaling\": {\"type\": \"longrope\", \"long_factor\": [1,2,3,-1], \"short_factor\": [1,1,1,1]}}", ERR_INPUT, "entry 3");
}

static void test_mistral(void **state)
{
    (void)state;
    struct arch a;
    assert_ok(config(&a, "{" HEAD_MISTRAL "}"));
    assert_int_equal(a.stack[STACK_DEC].block[0].window, 4096);
    assert_int_equal(a.stack[STACK_DEC].block[0].G, 8);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD_MISTRAL ", \"sliding_window\": null}"));
    assert_int_equal(a.stack[STACK_DEC].block[0].window, 0);
    arch_free(&a);
    assert_ok(config(&a, "{" HEAD_MISTRAL ", \"sliding_window\": 16, \"layer_types\": [\"full_attention\", \"sliding_attention\"]}"));
    assert_int_equal(a.stack[STACK_DEC].block[0].window, 0);
    assert_int_equal(a.stack[STACK_DEC].block[1].window, 16);
    arch_free(&a);
    refused("{" HEAD_MISTRAL ", \"attention_bias\": true}", ERR_UNSUPPORTED, "attention_bias");
    refused("{" HEAD ", \"sliding_window\": 16}", ERR_UNSUPPORTED, "sliding_window");
    refused("{" HEAD ", \"layer_types\": [\"sliding_attention\", \"full_attention\"]}", ERR_UNSUPPORTED, "layer 0");
    refused("{" HEAD ", \"layer_types\": [\"full_attention\"]}", ERR_INPUT, "layer_types");
}

static void test_refusals(void **state)
{
    (void)state;
    refused("", ERR_INPUT, "config.json");
    refused("[]", ERR_INPUT, "object");
    refused("{}", ERR_INPUT, "model_type");
    refused("{\"model_type\": \"bert\"}", ERR_UNSUPPORTED, "supported are llama, mistral");
    refused("{" HEAD ", \"clip_qkv\": 8.0}", ERR_UNSUPPORTED, "\"clip_qkv\": 8.0 is not understood");
    refused("{" HEAD ", \"rope_interleaved\": true}", ERR_UNSUPPORTED, "rope_interleaved");
    refused("{" HEAD ", \"quantization_config\": {\"bits\": 4}}", ERR_UNSUPPORTED, "quantization_config");
    refused("{" HEAD ", \"hidden_act\": \"relu\"}", ERR_UNSUPPORTED, "relu");
    refused("{" HEAD ", \"torch_dtype\": \"int8\"}", ERR_UNSUPPORTED, "int8");
    refused("{" HEAD ", \"vocab_size\": 11}", ERR_INPUT, "duplicate");
    refused("{" HEAD ", \"head_dim\": 7}", ERR_INPUT, "even");
    refused("{" HEAD ", \"head_dim\": \"x\"}", ERR_INPUT, "head_dim");
    refused("{" HEAD ", \"bos_token_id\": \"x\"}", ERR_INPUT, "bos_token_id");
    refused("{" HEAD ", \"num_key_value_heads\": 4}", ERR_INPUT, "duplicate");
    refused("{\"model_type\": \"llama\", \"hidden_size\": 48, \"intermediate_size\": 64, \"num_hidden_layers\": 99999999, "
            "\"num_attention_heads\": 6, \"vocab_size\": 11}", ERR_INPUT, "number of layers");
    refused("{\"model_type\": \"llama\", \"hidden_size\": 50, \"intermediate_size\": 64, \"num_hidden_layers\": 1, "
            "\"num_attention_heads\": 6, \"vocab_size\": 11}", ERR_INPUT, "no \"head_dim\"");
    struct arch a;
    assert_ok(config(&a, "{" HEAD ", \"rope_interleaved\": false, \"pruned_heads\": {}, \"partial_rotary_factor\": 1.0, "
                         "\"torch_dtype\": \"torch.float16\", \"hidden_act\": \"gelu_pytorch_tanh\"}"));
    assert_int_equal(a.dtype, DT_F16);
    assert_int_equal(a.mlp, MLP_GEGLU_TANH);
    arch_free(&a);
}

/* ---- config.json out ---------------------------------------------------------------------------------------------- */

static void edited(const char *in, int64_t G, int tied, enum dtype dtype, const char *want)
{
    struct arch a;
    char *text;
    assert_ok(config(&a, in));
    for (int l = 0; l < 2; l++)
        a.stack[STACK_DEC].block[l].G = G;
    a.tied = tied;
    assert_ok(arch_to_config_json(&a, dtype, &text));
    assert_string_equal(text, want);
    free(text);
    arch_free(&a);
}

static void test_config_out_keeps_the_text(void **state)
{
    (void)state;
    edited("{" HEAD ", \"rms_norm_eps\": 1e-05, \"_x\" : [1.50, {\"}\":\",\\\"\"}] }\n", 3, 0, DT_NONE,
           "{" HEAD ", \"rms_norm_eps\": 1e-05, \"_x\" : [1.50, {\"}\":\",\\\"\"}] }\n");
    edited("{\"_x\": \"num_key_value_heads\", \"_y\": {\"num_key_value_heads\": 9}, " HEAD " }", 1, 0, DT_NONE,
           "{\"_x\": \"num_key_value_heads\", \"_y\": {\"num_key_value_heads\": 9}, \"model_type\": \"llama\", \"hidden_size\": 48, "
           "\"intermediate_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 6, \"vocab_size\": 11, "
           "\"num_key_value_heads\": 1 }");
    edited("{\n  \"model_type\": \"llama\",\n  \"hidden_size\": 48,\n  \"intermediate_size\": 64,\n  \"num_hidden_layers\": 2,\n"
           "  \"num_attention_heads\": 6,\n  \"torch_dtype\" :\"float32\" ,\n  \"vocab_size\": 11\n}\n", 2, 1, DT_BF16,
           "{\n  \"model_type\": \"llama\",\n  \"hidden_size\": 48,\n  \"intermediate_size\": 64,\n  \"num_hidden_layers\": 2,\n"
           "  \"num_attention_heads\": 6,\n  \"num_key_value_heads\": 2,\n  \"torch_dtype\" :\"bfloat16\" ,\n  \"vocab_size\": 11,\n"
           "  \"tie_word_embeddings\": true\n}\n");
    edited("{" HEAD ",\"dtype\":\"bfloat16\"}", 3, 0, DT_F16, "{" HEAD ",\"dtype\":\"float16\"}");
    edited("{" HEAD "}", 3, 0, DT_F64, "{" HEAD ", \"torch_dtype\": \"float64\"}");
    struct arch a;
    char *text;
    assert_ok(config(&a, "{" HEAD "}"));
    a.stack[STACK_DEC].block[1].G = 1;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "layer 0 has 3 and layer 1 has 1");
    a.stack[STACK_DEC].block[1].G = 3;
    a.stack[STACK_DEC].block[1].F = 65;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_INTERNAL, "decoder.blocks[1].F");
    arch_free(&a);
}

static void test_fresh_config(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{" HEAD ", \"rms_norm_eps\": 1e-05, \"torch_dtype\": \"bfloat16\", \"attention_bias\": true, \"hidden_act\": \"gelu\", \"head_dim\": 10, "
        "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.5}, \"tie_word_embeddings\": true, \"bos_token_id\": null}",
        "{" HEAD ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}}",
        "{" HEAD ", \"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2, \"long_factor\": [1,2,3,4], \"short_factor\": [1,1,1,1.25]}}",
        "{" HEAD_MISTRAL ", \"sliding_window\": 77}"};
    for (size_t i = 0; i < COUNT_OF(sources); i++) {
        struct arch a, b;
        char *text;
        assert_ok(config(&a, sources[i]));
        free(a.source_config);
        a.source_config = NULL;
        assert_ok(arch_to_config_json(&a, DT_NONE, &text));
        if (i == 0)
            assert_non_null(strstr(text, "\"rms_norm_eps\": 1e-5,"));
        assert_ok(config(&b, text));
        free(b.source_config);
        b.source_config = NULL;
        json_t *x = arch_to_json(&a), *y = arch_to_json(&b);
        if (!json_equal(x, y))
            print_error("%s\n", text);
        assert_true(json_equal(x, y));
        json_decref(x);
        json_decref(y);
        free(text);
        arch_free(&a);
        arch_free(&b);
    }
    struct arch a;
    char *text;
    assert_ok(config(&a, "{" HEAD "}"));
    free(a.source_config);
    a.source_config = NULL;
    a.bias = BIAS_Q;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "model's bias");
    a.bias = 0;
    a.mlp = MLP_RELU;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "hidden_act");
    a.mlp = MLP_SWIGLU;
    a.norm = NORM_LAYER;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "model's norm = \"layer\"");
    a.norm = NORM_RMS;
    a.rope.dims = 4;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "rotary");
    a.rope.dims = 8;
    a.stack[STACK_DEC].block[1].F = 65;
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "decoder.blocks[1].F");
    snprintf(a.family, sizeof a.family, "gpt9");
    assert_refused(arch_to_config_json(&a, DT_NONE, &text), ERR_UNSUPPORTED, "gpt9");
    arch_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_in_memory_order), cmocka_unit_test(test_checks),   cmocka_unit_test(test_json_round_trip),
        cmocka_unit_test(test_llama_defaults),          cmocka_unit_test(test_rope_kinds), cmocka_unit_test(test_rope_precedence), cmocka_unit_test(test_mistral),
        cmocka_unit_test(test_refusals),                cmocka_unit_test(test_config_out_keeps_the_text),
        cmocka_unit_test(test_fresh_config),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
