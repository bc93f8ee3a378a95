/* tokenizer.* of a GGUF file, from the files that travel with a Hugging Face model: tokenizer.json, vocab.json and merges.txt, or tokenizer.model;
 * tokenizer_config.json for the special tokens, whether they are added, and the chat template. */
#include "gguf_tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

const struct ckpt_companion *gguf_companion(const struct ckpt_companion *list, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(list[i].name, name))
            return &list[i];
    return NULL;
}

static enum code parse(const struct ckpt_companion *c, const char *where, json_t **root)
{
    *root = NULL;
    return c ? fail_in(json_parse_object(c->bytes, c->n, c->name, root), "%s", where) : OK;
}

/* ---- vocab.json and merges.txt in the form of tokenizer.json --------------------------------------------------------- */

/* NULL when a line is no UTF-8. */
static json_t *merges_lines(const struct ckpt_companion *c)
{
    json_t *list = json_array();
    int good = 1;
    const char *at = c->bytes, *end = c->bytes + c->n;
    while (at < end) {
        const char *line = at, *stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop ? stop : end;
        at = stop + 1;
        while (stop > line && (stop[-1] == '\r' || stop[-1] == ' '))
            stop--;
        if (stop > line && !(line == c->bytes && !strncmp(line, "#version", 8)))
            good &= !json_array_append_new(list, json_stringn(line, (size_t)(stop - line)));
    }
    if (!good)
        json_decref(list);
    return good ? list : NULL;
}

/* "added_tokens_decoder": {"50256": {"content", "special"}} -> [{"id", "content", "special"}] */
static json_t *added_list(const json_t *settings)
{
    json_t *list = json_array(), *token;
    const char *id;
    json_object_foreach (json_object_get(settings, "added_tokens_decoder"), id, token) {
        json_t *copy = json_copy(token);
        json_object_set_new(copy, "id", json_integer(atoll(id)));
        json_array_append_new(list, copy);
    }
    return list;
}

static enum code from_parts(struct gguf_vocab *v, const struct ckpt_companion *vocab, const struct ckpt_companion *merges,
                            const json_t *settings, const char *where)
{
    const char *class = json_string_value(json_object_get(settings, "tokenizer_class"));
    json_t *words, *lines;
    TRY(parse(vocab, where, &words));
    lines = merges_lines(merges);
    if (!lines) {
        json_decref(words);
        return fail(ERR_INPUT, "%s: merges.txt is not UTF-8 text", where);
    }
    v->root = json_pack("{s:{s:s, s:o, s:o}, s:o, s:o}", "model", "type", "BPE", "vocab", words, "merges", lines, "pre_tokenizer",
                        gguf_pre_of_class(class ? class : "", where), "added_tokens", added_list(settings));
    return v->root ? OK : fail(ERR_MEMORY, "%s: out of memory for its tokenizer", where);
}

static enum code from_pieces(struct gguf_vocab *v, const struct ckpt_companion *pieces, const json_t *settings, const char *where)
{
    TRY(gguf_sentencepiece(pieces->bytes, pieces->n, where, &v->root));
    json_t *list = added_list(settings);
    json_array_extend(json_object_get(v->root, "added_tokens"), list);
    json_decref(list);
    return OK;
}

enum code gguf_tokenizer_read(struct gguf_vocab *v, const struct ckpt_companion *list, int n, const json_t *settings, const char *where)
{
    const struct ckpt_companion *whole = gguf_companion(list, n, "tokenizer.json"), *pieces = gguf_companion(list, n, "tokenizer.model");
    const struct ckpt_companion *vocab = gguf_companion(list, n, "vocab.json"), *merges = gguf_companion(list, n, "merges.txt");
    if (whole)
        return parse(whole, where, &v->root);
    if (vocab && merges)
        return from_parts(v, vocab, merges, settings, where);
    return pieces ? from_pieces(v, pieces, settings, where) : OK;
}

/* ---- special tokens ------------------------------------------------------------------------------------------------- */

/* "<s>", or {"content": "<s>"}. */
static const char *token_text(const json_t *settings, const char *key)
{
    const json_t *t = json_object_get(settings, key);
    return json_string_value(json_is_object(t) ? json_object_get(t, "content") : t);
}

static const char *template_edge(const json_t *single, size_t i)
{
    return json_string_value(json_object_get(json_object_get(json_array_get(single, i), "SpecialToken"), "id"));
}

/* What the post-processor's template puts before and after a text. */
static void template_read(const json_t *root, const char **before, const char **after)
{
    const json_t *post = json_object_get(root, "post_processor"), *steps = json_object_get(post, "processors"), *step, *single;
    size_t i;
    single = json_object_get(post, "single");
    json_array_foreach ((json_t *)steps, i, step)
        if (json_object_get(step, "single"))
            single = json_object_get(step, "single");
    size_t n = json_array_size(single);
    if (n > 1) {
        *before = template_edge(single, 0);
        *after = template_edge(single, n - 1);
    }
}

static void put_id(struct gguf_buffer *b, const char *key, int64_t id)
{
    if (id >= 0)
        gguf_put_u32(b, key, (uint32_t)id);
}

/* The tokenizer's word comes first, then the config's. */
static int64_t special_id(const struct gguf_vocab *v, const json_t *settings, const char *key, const char *edge, int config)
{
    int64_t id = gguf_vocab_find(v, token_text(settings, key));
    if (id < 0)
        id = gguf_vocab_find(v, edge);
    return id >= 0 ? id : config >= 0 && config < v->n ? config : -1;
}

/* Tokenizer classes of Llama and Gemma add <s> unless told otherwise, whatever the template in tokenizer.json says. */
static int adds(const json_t *settings, const char *key, int template, int bos)
{
    const char *class = json_string_value(json_object_get(settings, "tokenizer_class"));
    const json_t *said = json_object_get(settings, key);
    if (json_is_boolean(said))
        return json_is_true(said);
    if (bos && class && (strstr(class, "Llama") || !strncmp(class, "Gemma", 5)))
        return 1;
    return template;
}

static void specials_put(struct gguf_buffer *b, const struct gguf_vocab *v, const struct arch *a, const json_t *settings)
{
    const char *before = NULL, *after = NULL;
    template_read(v->root, &before, &after);
    int64_t bos = special_id(v, settings, "bos_token", before, a->bos), eos = special_id(v, settings, "eos_token", after, a->eos);
    put_id(b, "tokenizer.ggml.bos_token_id", bos);
    put_id(b, "tokenizer.ggml.eos_token_id", eos);
    put_id(b, "tokenizer.ggml.unknown_token_id", special_id(v, settings, "unk_token", NULL, -1));
    put_id(b, "tokenizer.ggml.padding_token_id", special_id(v, settings, "pad_token", NULL, a->pad));
    gguf_put_bool(b, "tokenizer.ggml.add_bos_token", bos >= 0 && adds(settings, "add_bos_token", before != NULL, 1));
    gguf_put_bool(b, "tokenizer.ggml.add_eos_token", eos >= 0 && adds(settings, "add_eos_token", after != NULL, 0));
}

/* ---- text before it is split ----------------------------------------------------------------------------------------- */

/* SentencePiece's dummy prefix: a space before the text. */
static int adds_space(const json_t *root)
{
    const json_t *normalizer = json_object_get(root, "normalizer"), *steps = json_object_get(normalizer, "normalizers"), *step;
    const json_t *pre = json_object_get(root, "pre_tokenizer"), *many = json_object_get(pre, "pretokenizers");
    size_t i;
    json_array_foreach ((json_t *)steps, i, step)
        if (json_object_get(step, "prepend"))
            return 1;
    if (json_object_get(normalizer, "prepend"))
        return 1;
    json_array_foreach ((json_t *)many, i, step)
        if (json_object_get(step, "prepend_scheme") || json_object_get(step, "add_prefix_space"))
            pre = step;
    const char *scheme = json_string_value(json_object_get(pre, "prepend_scheme"));
    return scheme ? strcmp(scheme, "never") != 0 : json_is_true(json_object_get(pre, "add_prefix_space"));
}

/* What llama.cpp does itself: SentencePiece's space and prefix. */
static int is_prefix_step(const json_t *step)
{
    const char *type = json_string_value(json_object_get(step, "type"));
    const char *from = json_string_value(json_object_get(json_object_get(step, "pattern"), "String"));
    return type && (!strcmp(type, "Prepend") || (!strcmp(type, "Replace") && from && !strcmp(from, " ")));
}

/* llama.cpp leaves every other normaliser out. NFC matters for text in decomposed form only. */
static void normalizer_tell(const struct gguf_vocab *v, const char *where)
{
    const json_t *normalizer = json_object_get(v->root, "normalizer"), *steps = json_object_get(normalizer, "normalizers");
    size_t n = steps ? json_array_size(steps) : json_is_object(normalizer);
    for (size_t i = 0; i < n; i++) {
        const json_t *step = steps ? json_array_get(steps, i) : normalizer;
        const char *type = json_string_value(json_object_get(step, "type"));
        if (type && !strcmp(type, "NFC"))
            log_info("%s: llama.cpp does not bring text to NFC as this tokenizer does; it matters for decomposed text only", where);
        else if (v->kind == VOCAB_BYTES || !is_prefix_step(step))
            log_warn("%s: llama.cpp leaves out this tokenizer's normaliser %s; it may give other tokens", where, type ? type : "(without a type)");
    }
}

static enum code merges_put(struct gguf_buffer *b, const struct gguf_vocab *v, const char *where)
{
    const json_t *merges = json_object_get(json_object_get(v->root, "model"), "merges"), *merge;
    size_t i;
    gguf_begin_texts(b, "tokenizer.ggml.merges", json_array_size(merges));
    json_array_foreach ((json_t *)merges, i, merge) {
        const char *text = json_string_value(merge), *x = json_string_value(json_array_get(merge, 0)), *y = json_string_value(json_array_get(merge, 1));
        char joined[4096];
        if (!text && x && y && !strchr(x, ' ') && !strchr(y, ' ') && strlen(x) + strlen(y) + 2 <= sizeof joined) {
            strcat(strcat(strcpy(joined, x), " "), y);
            text = joined;
        }
        if (!text)
            return fail(ERR_INPUT, "%s: tokenizer.json: merge %zu is not two tokens", where, i);
        gguf_add_text(b, text, strlen(text));
    }
    return OK;
}

static enum code bytes_put(struct gguf_buffer *b, const struct gguf_vocab *v, const char *where)
{
    const char *pre = gguf_pre_name(v->root);
    gguf_put_text(b, "tokenizer.ggml.model", "gpt2");
    if (!pre)
        log_warn("%s: llama.cpp has no pre-tokenizer known to split text like this tokenizer.json; \"default\" may give other tokens", where);
    if (adds_space(v->root))
        log_warn("%s: this tokenizer puts a space before the text, which llama.cpp does not for byte-level tokenizers", where);
    gguf_put_text(b, "tokenizer.ggml.pre", pre ? pre : "default");
    return merges_put(b, v, where);
}

static void pieces_put(struct gguf_buffer *b, const struct gguf_vocab *v)
{
    gguf_put_text(b, "tokenizer.ggml.model", "llama");
    gguf_put_text(b, "tokenizer.ggml.pre", "default");
    gguf_put_f32s(b, "tokenizer.ggml.scores", v->score, (size_t)v->n);
    gguf_put_bool(b, "tokenizer.ggml.add_space_prefix", adds_space(v->root));
}

/* A file of its own, one template, or several of which one is "default". */
static void template_put(struct gguf_buffer *b, const struct ckpt_companion *list, int n, const json_t *settings)
{
    const struct ckpt_companion *file = gguf_companion(list, n, "chat_template.jinja");
    const json_t *said = json_object_get(settings, "chat_template"), *one;
    const char *text = json_string_value(said);
    size_t i;
    json_array_foreach ((json_t *)said, i, one) {
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && !strcmp(name, "default"))
            text = json_string_value(json_object_get(one, "template"));
    }
    if (file)
        gguf_put_bytes(b, "tokenizer.chat_template", file->bytes, file->n);
    else if (text)
        gguf_put_text(b, "tokenizer.chat_template", text);
}

/* llama.cpp looks for these tokens in every model with "phi-3" in its name, and throws when one is missing. */
static int name_is_safe(const struct gguf_vocab *v, const char *name)
{
    static const char *const demanded[] = {"</s>", "<unk>", "<s>", "<|endoftext|>"};
    if (!strcasestr(name, "phi-3") && !strcasestr(name, "phi3"))
        return 1;
    for (size_t i = 0; i < sizeof demanded / sizeof *demanded; i++)
        if (gguf_vocab_find(v, demanded[i]) < 0)
            return 0;
    return 1;
}

static enum code vocab_put(struct gguf_buffer *b, const struct gguf_vocab *v, const struct arch *a, const json_t *settings, const char *where)
{
    normalizer_tell(v, where);
    if (v->kind == VOCAB_BYTES)
        TRY(bytes_put(b, v, where));
    else
        pieces_put(b, v);
    gguf_begin_texts(b, "tokenizer.ggml.tokens", (size_t)v->n);
    for (int64_t i = 0; i < v->n; i++)
        gguf_add_text(b, v->text[i], strlen(v->text[i]));
    gguf_put_i32s(b, "tokenizer.ggml.token_type", v->type, (size_t)v->n);
    specials_put(b, v, a, settings);
    return OK;
}

static enum code write_all(struct gguf_buffer *b, struct gguf_vocab *v, const struct arch *a, const struct ckpt_companion *list, int n,
                           const char *name, const json_t *settings, const char *where)
{
    const char *why = "the model has none";
    TRY(gguf_tokenizer_read(v, list, n, settings, where));
    if (v->root)
        TRY(gguf_vocab_fill(v, a->V, &why, where));
    if (v->kind != VOCAB_NONE && name_is_safe(v, name))
        gguf_put_text(b, "general.name", name);
    if (v->kind != VOCAB_NONE) {
        TRY(vocab_put(b, v, a, settings, where));
        template_put(b, list, n, settings);
        return OK;
    }
    log_warn("%s: written without a tokenizer (%s): llama.cpp will take and give token ids only", where, why);
    gguf_put_text(b, "general.name", name);
    gguf_put_text(b, "tokenizer.ggml.model", "no_vocab");
    return OK;
}

enum code gguf_tokenizer(struct gguf_buffer *b, const struct arch *a, const struct ckpt_companion *list, int n, const char *name, const char *where)
{
    struct gguf_vocab v = {0};
    json_t *settings;
    TRY(parse(gguf_companion(list, n, "tokenizer_config.json"), where, &settings));
    enum code c = write_all(b, &v, a, list, n, name, settings, where);
    gguf_vocab_free(&v);
    json_decref(settings);
    return c;
}
