/* llama.cpp's architectures as a table of what each computes and demands, and the search for one that computes a given model:
 * by its properties, not by its family's name, so that a rewritten or retargeted model finds its place too. One line per
 * architecture, read off src/models/NAME.cpp: the tensors it creates, the graph it builds. A softmax scale of D^-0.5 and GELU by
 * its tanh form are built in everywhere. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "gguf.h"

#define BIT(value) (1u << (value))
#define PRE BIT(NORM_PRE)
#define SEQUENTIAL BIT(RESIDUAL_SEQUENTIAL)
#define ONE_NORM BIT(RESIDUAL_PARALLEL_ONE_NORM)
#define TWO_NORMS BIT(RESIDUAL_PARALLEL_TWO_NORMS)
#define ROPE BIT(POS_ROPE)
#define NO_QK BIT(QK_NORM_NONE)
#define QKV_B (BIAS_Q | BIAS_K | BIAS_V)
#define MLP_B (BIAS_MLP_IN | BIAS_MLP_OUT)
#define BLOCK_B (BIAS_O | MLP_B | BIAS_NORM)

static const struct gguf_row ROWS[] = {
    {"llama", {"llama", "mistral"}, BIT(NORM_RMS), PRE, SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), NO_QK, 0, QKV_B | BIAS_O | MLP_B,
     GGUF_PAIRS | GGUF_WIDE | GGUF_FREQS | GGUF_LONGROPE},
    {"deci", {NULL}, BIT(NORM_RMS), PRE, SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), NO_QK, 0, QKV_B | BIAS_O | MLP_B,
     GGUF_PAIRS | GGUF_WIDE | GGUF_FREQS | GGUF_LONGROPE | GGUF_LAYERS},
    {"qwen2", {"qwen2"}, BIT(NORM_RMS), PRE, SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), NO_QK, 0, QKV_B | BIAS_HEAD, 0},
    {"qwen3", {"qwen3"}, BIT(NORM_RMS), PRE, SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), BIT(QK_NORM_HEAD), 0, QKV_B, GGUF_WIDE},
    {"olmo", {"olmo"}, BIT(NORM_LAYER_NOP), PRE, SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), NO_QK, 0, QKV_B, GGUF_PAIRS | GGUF_CLIP},
    {"olmo2", {"olmo2"}, BIT(NORM_RMS), BIT(NORM_POST_SUBLAYER), SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), BIT(QK_NORM_FULL), 0, QKV_B,
     GGUF_HEAD | GGUF_WINDOWS},
    {"gemma", {"gemma"}, BIT(NORM_RMS) | BIT(NORM_RMS1P), PRE, SEQUENTIAL, ROPE, BIT(MLP_GEGLU_TANH), NO_QK, 0, QKV_B,
     GGUF_TIED | GGUF_EMBED_SCALE | GGUF_WIDE},
    {"phi3", {"phi3"}, BIT(NORM_RMS), PRE, SEQUENTIAL, ROPE, BIT(MLP_SWIGLU), NO_QK, 0, QKV_B,
     GGUF_QKV | GGUF_GATE_UP | GGUF_PARTIAL | GGUF_LONGROPE},
    {"phi2", {"phi", "gptj"}, BIT(NORM_LAYER), PRE, ONE_NORM, ROPE, BIT(MLP_GELU_TANH), NO_QK, BLOCK_B | BIAS_HEAD, QKV_B,
     GGUF_HEAD | GGUF_PARTIAL},
    {"stablelm", {"stablelm"}, BIT(NORM_LAYER), PRE, SEQUENTIAL | ONE_NORM, ROPE, BIT(MLP_SWIGLU), NO_QK | BIT(QK_NORM_PER_HEAD), BIAS_NORM,
     QKV_B, GGUF_HEAD | GGUF_PARTIAL},
    {"starcoder2", {"starcoder2"}, BIT(NORM_LAYER), PRE, SEQUENTIAL, ROPE, BIT(MLP_GELU_TANH), NO_QK, BLOCK_B, QKV_B, 0},
    {"gptneox", {"gpt_neox"}, BIT(NORM_LAYER), PRE, SEQUENTIAL | TWO_NORMS, ROPE, BIT(MLP_GELU_TANH), NO_QK, QKV_B | BLOCK_B, 0,
     GGUF_QKV | GGUF_HEAD | GGUF_PARTIAL | GGUF_PARALLEL_KEY},
    {"falcon", {"falcon"}, BIT(NORM_LAYER), PRE, ONE_NORM | TWO_NORMS, ROPE, BIT(MLP_GELU_TANH), NO_QK, BIAS_NORM, 0, GGUF_QKV},
    {"gpt2", {"gpt2", "gpt_neo", "opt"}, BIT(NORM_LAYER), PRE, SEQUENTIAL, BIT(POS_LEARNED), BIT(MLP_GELU_TANH), NO_QK, QKV_B | BLOCK_B, 0,
     GGUF_QKV},
    {"starcoder", {"gpt_bigcode"}, BIT(NORM_LAYER), PRE, SEQUENTIAL, BIT(POS_LEARNED), BIT(MLP_GELU_TANH), NO_QK, QKV_B | BLOCK_B, 0, GGUF_QKV},
    {"bloom", {"bloom"}, BIT(NORM_LAYER), PRE, SEQUENTIAL, BIT(POS_ALIBI), BIT(MLP_GELU_TANH), NO_QK, QKV_B | BLOCK_B, 0,
     GGUF_QKV | GGUF_EMBED_NORM},
    {"mpt", {"mpt"}, BIT(NORM_LAYER), PRE, SEQUENTIAL, BIT(POS_ALIBI) | BIT(POS_LEARNED) | BIT(POS_NONE), BIT(MLP_GELU_TANH), NO_QK, 0,
     QKV_B | BLOCK_B, GGUF_QKV | GGUF_CLIP | GGUF_ALIBI_MAX},
};
enum { N_ROWS = sizeof ROWS / sizeof *ROWS, LLAMA_CPP_LAYERS = 512 };

static int same(double x, double y) { return fabs(x - y) <= 1e-6 * fabs(y); }

int gguf_layers_differ(const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int differ = 0;
    for (int64_t l = 1; l < s->L; l++)
        differ |= s->block[l].G != s->block[0].G;
    return differ;
}

/* ---- what no architecture has --------------------------------------------------------------------------------------- */

static const char *block_refusal(const struct arch_block *b, const struct arch_block *first)
{
    if (b->dilation || b->global_tokens || b->blocksparse || b->cross)
        return "its attention is sparse or looks at an encoder";
    if (b->D != b->Dv)
        return "its keys and values differ in width";
    if (b->H != first->H || b->D != first->D || b->F != first->F)
        return "its layers differ in more than the number of K/V heads";
    return NULL;
}

static const char *general_refusal(const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    const char *why = NULL;
    if (a->stack[STACK_ENC].present)
        return "it has an encoder";
    if (s->L > LLAMA_CPP_LAYERS)
        return "it has more than 512 layers";
    for (int64_t l = 0; l < s->L && !why; l++)
        why = block_refusal(&s->block[l], &s->block[0]);
    if (why)
        return why;
    if (a->embed_proj)
        return "its embedding has another width than its layers";
    if (a->logit_softcap > 0 || !same(a->logit_scale, 1))
        return "it scales or caps its logits";
    if (!same(a->residual_scale, 1))
        return "it scales its residuals";
    if (a->pos == POS_ALIBI && a->alibi_scaled)
        return "its ALiBi bias is scaled like the scores (falcon), which llama.cpp does not do";
    return NULL;
}

/* ---- one architecture ----------------------------------------------------------------------------------------------- */

struct fit { unsigned rewrite, approx; int depth; const char *why; };

static int gelu_fits(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    enum mlp_kind tanh = a->mlp == MLP_GELU_ERF ? MLP_GELU_TANH : a->mlp == MLP_GEGLU_ERF ? MLP_GEGLU_TANH : a->mlp;
    f->approx |= tanh == a->mlp ? 0 : (unsigned)GGUF_APPROX_GELU;
    return (row->mlps & BIT(tanh)) != 0;
}

/* OLMo's LayerNorm without weights is an RMSNorm of centred residuals (Llama): for what its own architecture cannot hold. */
static int norm_fits(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    if (row->norms & BIT(a->norm))
        return 1;
    f->rewrite |= REWRITE_NORM_ONES | REWRITE_CENTRE;
    return a->norm == NORM_LAYER_NOP && row->norms & BIT(NORM_RMS) && a->norm_place == NORM_PRE && !a->embed_norm && !a->embed_proj;
}

static int biases_fit(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    unsigned may = row->need | row->may, missing = row->need & ~a->bias;
    if (row->traits & GGUF_QKV && a->bias & QKV_B) /* one vector for all three */
        missing |= (unsigned)QKV_B & ~a->bias;
    if (a->bias & ~may)
        return 0;
    if (missing & BIAS_HEAD)
        f->rewrite |= REWRITE_ZERO_HEAD_BIAS;
    if (!(missing & ~(unsigned)BIAS_HEAD))
        return 1;
    f->rewrite |= REWRITE_ZERO_BIASES; /* which adds all of these */
    return ((unsigned)(QKV_B | BLOCK_B) & ~may) == 0;
}

static int rope_fits(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    const struct arch_rope *r = &a->rope;
    if (a->pos != POS_ROPE)
        return 1;
    if (r->dims != a->stack[STACK_DEC].block[0].D && !(row->traits & GGUF_PARTIAL))
        return 0;
    if (r->kind == ROPE_DYNAMIC)
        f->approx |= GGUF_APPROX_DYNAMIC;
    if (r->kind == ROPE_YARN && !(same(r->beta_fast, 32) && same(r->beta_slow, 1)))
        f->approx |= GGUF_APPROX_BETAS;
    if (r->kind == ROPE_LONGROPE)
        f->approx |= GGUF_APPROX_LONGROPE;
    return (r->kind != ROPE_LLAMA3 || row->traits & GGUF_FREQS) && (r->kind != ROPE_LONGROPE || row->traits & GGUF_LONGROPE);
}

static int windows_fit(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int64_t window = 0;
    for (int64_t l = 0; l < s->L; l++)
        if (s->block[l].window && s->block[l].window < a->max_positions) {
            if (window && window != s->block[l].window && row->traits & GGUF_WINDOWS)
                return 0;
            window = s->block[l].window;
        }
    if (window && !(row->traits & GGUF_WINDOWS))
        f->approx |= GGUF_APPROX_WINDOW;
    return !(window && row->traits & GGUF_WINDOWS && a->rope.kind != ROPE_DEFAULT); /* unscaled in its windowed layers */
}

static int alibi_fits(const struct gguf_row *row, const struct arch *a)
{
    return a->pos != POS_ALIBI || row->traits & GGUF_ALIBI_MAX || same(a->alibi_bias_max, 8);
}

static int embedding_fits(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    double root = sqrt((double)a->C), scale = row->traits & GGUF_EMBED_SCALE ? root : 1;
    if (same(a->embed_scale, scale))
        return 1;
    f->approx |= GGUF_APPROX_EMBED;
    return row->traits & GGUF_EMBED_SCALE && fabs(a->embed_scale - scale) <= 4e-3 * scale;
}

static int width_fits(const struct gguf_row *row, const struct arch *a)
{
    const struct arch_block *b = &a->stack[STACK_DEC].block[0];
    return row->traits & GGUF_WIDE || b->H * b->D == a->C;
}

static int scale_fits(const struct arch *a, struct fit *f)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    for (int64_t l = 0; l < s->L; l++) {
        double scale = s->block[l].scale > 0 ? s->block[l].scale : a->attn_scale;
        if (!same(scale, 1 / sqrt((double)s->block[l].D)))
            f->rewrite |= REWRITE_SCALE_Q;
    }
    return 1;
}

static int head_fits(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    if (row->traits & GGUF_HEAD && a->tied)
        f->rewrite |= REWRITE_UNTIE;
    if (a->pos == POS_LEARNED && a->pos_offset)
        f->rewrite |= REWRITE_POS_OFFSET;
    return !(row->traits & GGUF_TIED) || a->tied;
}

/* Fills f; 1 if the architecture can hold the model. f->depth counts the properties that agree, f->why says what it does otherwise. */
static int row_fits(const struct gguf_row *row, const struct arch *a, struct fit *f)
{
    memset(f, 0, sizeof *f);
#define NEED(condition, words)       \
    do {                             \
        if (!(condition)) {          \
            f->why = (words);        \
            return 0;                \
        }                            \
        f->depth++;                  \
    } while (0)
    NEED(gelu_fits(row, a, f), "has another MLP");
    NEED(norm_fits(row, a, f), "has other norms");
    NEED(row->positions & BIT(a->pos), "has other positions");
    NEED(row->residuals & BIT(a->residual), "has other residuals");
    NEED(row->places & BIT(a->norm_place), "has its norms elsewhere");
    NEED(row->qk_norms & BIT(a->qk_norm), "has other norms of queries and keys");
    NEED(biases_fit(row, a, f), "has other biases");
    NEED(!(row->traits & GGUF_EMBED_NORM) == !a->embed_norm, "differs in the norm behind the embedding");
    NEED(embedding_fits(row, a, f), "scales the embedding otherwise");
    NEED(width_fits(row, a), "needs heads times head width to be the model width");
    NEED(rope_fits(row, a, f), "has no such rotary positions");
    NEED(alibi_fits(row, a), "has other ALiBi slopes");
    NEED(a->clip_qkv <= 0 || row->traits & GGUF_CLIP, "does not clip queries, keys and values");
    NEED(windows_fit(row, a, f), "has no such sliding windows");
    NEED(head_fits(row, a, f), "uses the embedding as its head");
    NEED(!gguf_layers_differ(a) || row->traits & GGUF_LAYERS, "takes one number of K/V heads for all layers");
    NEED(scale_fits(a, f), "");
#undef NEED
    return 1;
}

static int preferred(const struct gguf_row *row, const struct arch *a)
{
    for (size_t i = 0; i < sizeof row->families / sizeof *row->families && row->families[i]; i++)
        if (!strcmp(row->families[i], a->family))
            return 1;
    return 0;
}

static int bits(unsigned set)
{
    int n = 0;
    for (; set; set &= set - 1)
        n++;
    return n;
}

static const char *const MLPS[] = {[MLP_SWIGLU] = "SwiGLU", [MLP_GEGLU_TANH] = "GeGLU", [MLP_GEGLU_ERF] = "GeGLU",
                                  [MLP_GELU_ERF] = "GELU",  [MLP_GELU_TANH] = "GELU",  [MLP_RELU] = "ReLU"};

static enum code refusal(const struct arch *a, const struct gguf_row *row, const struct fit *f)
{
    if (!f->depth)
        return fail(ERR_UNSUPPORTED, "llama.cpp's architecture %s has another MLP than this %s model's %s, and no other one fits", row->name,
                    a->family, MLPS[a->mlp]);
    return fail(ERR_UNSUPPORTED, "llama.cpp's architecture %s %s, unlike this %s model, and no other one fits", row->name, f->why, a->family);
}

/* The exact one first, then the one written for the family, then the one with the fewest rewritings. */
static enum code search(const struct arch *a, const struct gguf_row **row, struct fit *fit)
{
    const char *why = general_refusal(a);
    const struct gguf_row *closest = NULL;
    struct fit f, near = {0};
    int best = -1;
    if (why)
        return fail(ERR_UNSUPPORTED, "no architecture of llama.cpp computes this %s model: %s", a->family, why);
    for (int i = 0; i < N_ROWS; i++) {
        if (row_fits(&ROWS[i], a, &f)) {
            int cost = 1000 * bits(f.approx) + 100 * !preferred(&ROWS[i], a) + bits(f.rewrite);
            if (best < 0 || cost < best) {
                best = cost;
                *row = &ROWS[i];
                *fit = f;
            }
        } else if (!closest || preferred(&ROWS[i], a) || (!preferred(closest, a) && f.depth > near.depth)) {
            closest = &ROWS[i]; /* the family's own, else the one with most in common */
            near = f;
        }
    }
    return best >= 0 ? OK : refusal(a, closest, &near);
}

enum code gguf_row_of(const struct arch *a, const struct gguf_row **row)
{
    struct fit f;
    TRY(search(a, row, &f));
    if (f.rewrite)
        return fail(ERR_UNSUPPORTED, "llama.cpp's architecture %s needs this %s model rewritten first", (*row)->name, a->family);
    return OK;
}

/* ---- the choice ----------------------------------------------------------------------------------------------------- */

static const struct { unsigned bit; const char *words; } APPROXIMATIONS[] = {
    {GGUF_APPROX_GELU, "llama.cpp computes GELU by its tanh form, this model by erf (activations differ by at most 5e-4)"},
    {GGUF_APPROX_WINDOW, "llama.cpp leaves the sliding window out (no difference within one window)"},
    {GGUF_APPROX_DYNAMIC, "llama.cpp has no dynamic rotary scaling (no difference up to the trained length)"},
    {GGUF_APPROX_BETAS, "llama.cpp reads no beta_fast and beta_slow of YaRN for this architecture"},
    {GGUF_APPROX_EMBED, "llama.cpp multiplies the embedding by the square root of the model width, this model by that number rounded to its type"},
    {GGUF_APPROX_LONGROPE, "llama.cpp chooses the long or short rotary factors by its context size, not by the length of the text"},
};

enum code gguf_choose(const struct arch *result, struct ckpt_choice *choice)
{
    const struct gguf_row *row;
    struct fit f;
    TRY(search(result, &row, &f));
    memset(choice, 0, sizeof *choice);
    choice->home = HOME_GGUF;
    snprintf(choice->family, sizeof choice->family, "%s", result->family);
    choice->rewrite = f.rewrite;
    choice->exact = !f.approx;
    size_t size = sizeof choice->sentence;
    char words[200];
    rewrite_words(f.rewrite, words, sizeof words);
    size_t n = (size_t)snprintf(choice->sentence, size, "GGUF for llama.cpp's architecture %s%s%s", row->name, *words ? ", with " : "", words);
    for (size_t i = 0; i < sizeof APPROXIMATIONS / sizeof *APPROXIMATIONS; i++)
        if (f.approx & APPROXIMATIONS[i].bit && n < size)
            n += (size_t)snprintf(choice->sentence + n, size - n, "; approximate: %s", APPROXIMATIONS[i].words);
    return OK;
}
