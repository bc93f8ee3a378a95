/* Where a model can live. A class is believed to hold a model only when a config.json of it, read back, says everything the
 * architecture says (family_common.h: family_fresh_end); so nothing is listed here but which rewritings (rewrite.h) are worth trying. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "family_common.h"
#include "gguf.h"
#include "rewrite.h"

/* automatic 0: the source's own class would hold the result too, or holds it almost; only on request. */
static const struct retarget { const char *from, *to; unsigned steps; int automatic; } RETARGETS[] = {
    {"gpt_neox", "phi", REWRITE_FOLD_NORMS | REWRITE_ZERO_BIASES | REWRITE_ZERO_HEAD_BIAS | REWRITE_UNTIE, 1},
    {"gpt_neox", "starcoder2", REWRITE_ZERO_BIASES, 1}, /* sequential residual, all of the head rotated */
    {"gptj", "phi", REWRITE_ZERO_BIASES | REWRITE_ZERO_HEAD_BIAS | REWRITE_UNTIE, 1},
    {"gpt2", "gpt_bigcode", REWRITE_SCALE_Q, 1},
    {"opt", "gpt_bigcode", REWRITE_POS_OFFSET | REWRITE_NORM_ONES | REWRITE_ZERO_BIASES, 1},
    {"gpt_neo", "gpt_bigcode", REWRITE_SCALE_Q | REWRITE_ZERO_BIASES | REWRITE_DROP_WINDOWS, 1},
    {"olmo", "llama", REWRITE_NORM_ONES | REWRITE_CENTRE, 0},
};
enum { N_RETARGETS = sizeof RETARGETS / sizeof *RETARGETS };

const char *ckpt_home_name(enum ckpt_home home)
{
    static const char *const names[] = {"auto", "native", "retarget", "gguf", "custom", "expanded"};
    return names[home];
}

static int ends(const char *path, const char *suffix)
{
    size_t n = strlen(path), k = strlen(suffix);
    return n > k && !strcmp(path + n - k, suffix);
}

static const char *family_name(const struct arch *a) { return a->family[0] ? a->family : "llama"; }

/* The sentence of the last refusal without advice that does not fit here. */
static void reason(char *out, size_t n)
{
    snprintf(out, n, "%s", fail_text());
    static const char *const advice[] = {"; write a .h5", "; if it does not change"};
    for (size_t i = 0; i < sizeof advice / sizeof *advice; i++) {
        char *at = strstr(out, advice[i]);
        if (at)
            *at = 0;
    }
}

static void heads_text(const struct arch *a, char *out, size_t n)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    for (int64_t l = 1; l < s->L; l++)
        if (s->block[l].G != s->block[0].G) {
            snprintf(out, n, "a number of key/value heads for each layer");
            return;
        }
    snprintf(out, n, "%lld key/value head%s per layer", (long long)s->block[0].G, s->block[0].G == 1 ? "" : "s");
}

/* ---- does a class hold it ----------------------------------------------------------------------------------------- */

/* config.json of the arch, read back and compared; the class that it names. */
static enum code class_holds(const struct arch *a, char class_name[64])
{
    char *text;
    json_t *config;
    TRY(arch_to_config_json(a, DT_NONE, &text));
    enum code c = json_parse_object(text, strlen(text), "config.json", &config);
    free(text);
    TRY(c);
    c = family_fresh_end(a, config);
    const char *name = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    snprintf(class_name, 64, "%s", name ? name : family_name(a));
    json_decref(config);
    return c;
}

enum code ckpt_choice_arch(struct arch *a, const struct ckpt_choice *choice)
{
    struct arch_stack *s = &a->stack[STACK_DEC];
    if (choice->home == HOME_EXPANDED)
        for (int64_t l = 0; l < s->L; l++)
            s->block[l].G = s->block[l].H;
    if (choice->home == HOME_NATIVE || choice->home == HOME_EXPANDED)
        return OK;
    TRY(rewrite_arch(a, choice->rewrite));
    if (choice->home == HOME_GGUF && !choice->family[0])
        return OK;
    snprintf(a->family, sizeof a->family, "%s", choice->family);
    free(a->source_config);
    a->source_config = NULL;
    return OK;
}

static enum code holds(const struct arch *result, const struct ckpt_choice *choice, char class_name[64])
{
    struct arch a;
    TRY(arch_copy(&a, result));
    enum code c = ckpt_choice_arch(&a, choice);
    if (c == OK)
        c = class_holds(&a, class_name);
    arch_free(&a);
    return c;
}

/* ---- the homes ---------------------------------------------------------------------------------------------------- */

static void begin(struct ckpt_choice *c, const struct arch *result, enum ckpt_home home, const char *family, unsigned steps)
{
    memset(c, 0, sizeof *c);
    c->home = home;
    snprintf(c->family, sizeof c->family, "%s", family);
    c->rewrite = rewrite_needed(result, steps);
    c->exact = 1;
}

static enum code try_native(const struct arch *result, struct ckpt_choice *c)
{
    char class_name[64], heads[64];
    begin(c, result, HOME_NATIVE, family_name(result), 0);
    TRY(holds(result, c, class_name));
    heads_text(result, heads, sizeof heads);
    if (!strcmp(c->family, "gqakit"))
        snprintf(c->sentence, sizeof c->sentence, "stays in gqakit's own form with %s: transformers loads it with trust_remote_code=True", heads);
    else
        snprintf(c->sentence, sizeof c->sentence, "%s of transformers holds %s: it loads as it is", class_name, heads);
    return OK;
}

static void retarget_sentence(const struct arch *result, const char *class_name, const char *why, struct ckpt_choice *c)
{
    char words[256], heads[64];
    rewrite_words(c->rewrite, words, sizeof words);
    heads_text(result, heads, sizeof heads);
    int n = snprintf(c->sentence, sizeof c->sentence, "%.160s%swritten as %s, which holds %s and computes the same%s%s", why, *why ? "; " : "",
                     class_name, heads, *words ? " with " : "", words);
    int64_t context = rewrite_context(result, c->rewrite);
    c->exact = context >= result->max_positions;
    if (!c->exact && n > 0 && n < (int)sizeof c->sentence)
        n += snprintf(c->sentence + n, sizeof c->sentence - (size_t)n, "; only for contexts up to %lld tokens: beyond, layers with a window see more",
                      (long long)context);
    if (rewrite_rounds(c->rewrite) && (result->dtype == DT_BF16 || result->dtype == DT_F16) && n > 0 && n < (int)sizeof c->sentence)
        snprintf(c->sentence + n, sizeof c->sentence - (size_t)n, "; changed values are rounded once more to %s", dtype_name(result->dtype));
}

static enum code try_retarget(const struct arch *result, const char *to, unsigned steps, const char *why, struct ckpt_choice *c)
{
    char class_name[64];
    begin(c, result, HOME_RETARGET, to, steps);
    TRY(holds(result, c, class_name));
    retarget_sentence(result, class_name, why, c);
    return OK;
}

static enum code try_custom(const struct arch *result, const char *why, struct ckpt_choice *c)
{
    char class_name[64];
    begin(c, result, HOME_CUSTOM, "gqakit", 0);
    TRY(holds(result, c, class_name));
    snprintf(c->sentence, sizeof c->sentence, "%s%.360s%swritten with gqakit's own modeling file: transformers loads it with trust_remote_code=True",
             *why ? "no class of transformers holds it (" : "", why, *why ? "); " : "");
    return OK;
}

static enum code try_expanded(const struct arch *result, struct ckpt_choice *c)
{
    char class_name[64], heads[64];
    begin(c, result, HOME_EXPANDED, family_name(result), 0);
    TRY(holds(result, c, class_name));
    heads_text(result, heads, sizeof heads);
    int ours = !strcmp(c->family, "gqakit");
    snprintf(c->sentence, sizeof c->sentence, "%s with a copy of its key/value head for every query head: computes the same as %s, %s, saves no memory%s",
             class_name, heads, ours ? "loads with trust_remote_code=True" : "loads everywhere",
             ours ? "; as the class of the family it came from: --kv-heads (the query heads), --target retarget, --target-family NAME" : "");
    return OK;
}

/* ---- choosing ----------------------------------------------------------------------------------------------------- */

/* The table's rows for this family, in its order; with `family` that one alone, from the table or without rewriting. */
static enum code choose_retarget(const struct arch *result, const char *family, int automatic, const char *why, int *tried, struct ckpt_choice *c)
{
    char list[256] = "";
    size_t used = 0;
    *tried = 0;
    for (int i = 0; i < N_RETARGETS; i++) {
        const struct retarget *r = &RETARGETS[i];
        if (used < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s -> %s", used ? ", " : "", r->from, r->to);
        if (strcmp(r->from, family_name(result)) != 0 || (automatic && !r->automatic) || (family && strcmp(family, r->to) != 0))
            continue;
        *tried = 1;
        enum code code = try_retarget(result, r->to, r->steps, why, c);
        if (code == OK && (c->exact || !automatic))
            return OK;
        if (code == OK)
            code = fail(ERR_UNSUPPORTED, "%s would be exact only for contexts up to %lld tokens", r->to, (long long)rewrite_context(result, c->rewrite));
        if (code != ERR_UNSUPPORTED && code != ERR_INPUT)
            return code;
    }
    if (*tried)
        return ERR_UNSUPPORTED;
    if (family && !family_of(family))
        return fail(ERR_USAGE, "there is no family \"%s\"; families are %s", family, family_list());
    if (family)
        return try_retarget(result, family, 0, why, c);
    return fail(ERR_UNSUPPORTED, "no other class is known for the family %s; known are %s", family_name(result), list);
}

static enum code choose_auto(const struct arch *result, struct ckpt_choice *c)
{
    char native[400], other[200];
    int tried;
    enum code code = try_native(result, c);
    if (code == OK || code == ERR_MEMORY)
        return code;
    reason(native, sizeof native);
    code = choose_retarget(result, NULL, 1, native, &tried, c);
    if (code == OK || code == ERR_MEMORY)
        return code;
    reason(other, sizeof other);
    if (tried)
        snprintf(native + strlen(native), sizeof native - strlen(native), "; %.160s", other);
    code = try_custom(result, native, c);
    if (code == OK || code == ERR_MEMORY)
        return code;
    reason(other, sizeof other);
    return fail(ERR_UNSUPPORTED, "no Hugging Face directory can hold this model: %s; %s; write a .h5", native, other);
}

static enum code choose_h5(const struct arch *result, struct ckpt_choice *c)
{
    begin(c, result, HOME_NATIVE, family_name(result), 0);
    snprintf(c->sentence, sizeof c->sentence, "a .h5 of gqakit holds every architecture");
    return OK;
}

enum code ckpt_choose(const struct arch *result, const char *path, enum ckpt_home asked, const char *family, struct ckpt_choice *choice)
{
    int gguf = gguf_claims(path), h5 = ends(path, ".h5") || ends(path, ".hdf5"), tried;
    memset(choice, 0, sizeof *choice);
    if (asked == HOME_GGUF && !gguf)
        return fail(ERR_USAGE, "%s: a GGUF file is called *.gguf", path);
    if (gguf && asked != HOME_GGUF && asked != HOME_AUTO)
        return fail(ERR_USAGE, "%s: a *.gguf name asks for the target gguf, not %s", path, ckpt_home_name(asked));
    if (family && asked != HOME_RETARGET && asked != HOME_AUTO)
        return fail(ERR_USAGE, "a target family is for the target retarget, not %s", ckpt_home_name(asked));
    if (gguf)
        return gguf_choose(result, choice);
    if (asked == HOME_RETARGET || family)
        return choose_retarget(result, family, 0, "", &tried, choice);
    if (h5 && (asked == HOME_AUTO || asked == HOME_NATIVE))
        return choose_h5(result, choice);
    switch (asked) {
    case HOME_NATIVE: return try_native(result, choice);
    case HOME_CUSTOM: return try_custom(result, "", choice);
    case HOME_EXPANDED: return try_expanded(result, choice);
    default: return choose_auto(result, choice);
    }
}

enum code ckpt_rewritten(struct checkpoint **out, struct checkpoint *source, const struct ckpt_choice *choice)
{
    if (choice->home == HOME_NATIVE || choice->home == HOME_EXPANDED) {
        *out = source;
        return OK;
    }
    return rewrite_open(out, source, choice->rewrite, choice->family);
}
