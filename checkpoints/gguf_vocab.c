/* tokenizer.json (Hugging Face tokenizers) -> the tokens of a GGUF vocabulary.
 *   "gpt2"   byte-level BPE: texts as they are, bytes written as GPT-2's 256 characters; merges in order of rank.
 *   "llama"  SentencePiece BPE: llama.cpp merges the pair whose concatenation has the best score, so the score of a token is
 *            minus the rank of the first merge that makes it; U+2581 stands for the space; <0x00> ... <0xFF> are bytes.
 * Everything read here is untrusted: ids outside the embedding are left out, every text occurs once (llama.cpp aborts otherwise). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_tokenizer.h"

enum { MADE_TEXT = 32 };

static const char *string_at(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

/* 1 if the step, or one of a sequence of them, has this type. */
static const json_t *step_of(const json_t *step, const char *list, const char *type)
{
    const json_t *steps = json_object_get(step, list), *one;
    size_t i;
    if (!strcmp(string_at(step, "type"), type))
        return step;
    json_array_foreach ((json_t *)steps, i, one)
        if (!strcmp(string_at(one, "type"), type))
            return one;
    return NULL;
}

static enum gguf_vocab_kind kind_of(const json_t *root, const char **why)
{
    const json_t *model = json_object_get(root, "model");
    const char *type = string_at(model, "type");
    if (*type && strcmp(type, "BPE") != 0) {
        *why = "its model is not BPE";
        return VOCAB_NONE;
    }
    if (step_of(json_object_get(root, "pre_tokenizer"), "pretokenizers", "ByteLevel"))
        return VOCAB_BYTES;
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return VOCAB_PIECES;
    *why = "it is neither byte-level nor falls back to bytes";
    return VOCAB_NONE;
}

/* ---- tokens --------------------------------------------------------------------------------------------------------- */

/* Tokens of the model's vocabulary; *left counts those without a row in the embedding. */
static enum code tokens_read(struct gguf_vocab *v, const char *where, int64_t *left)
{
    const json_t *vocab = json_object_get(json_object_get(v->root, "model"), "vocab");
    const char *text;
    json_t *id;
    if (!json_is_object(vocab))
        return fail(ERR_INPUT, "%s: tokenizer.json: \"model\" has no \"vocab\"", where);
    json_object_foreach ((json_t *)vocab, text, id) {
        json_int_t i = json_integer_value(id);
        if (!json_is_integer(id) || i < 0)
            return fail(ERR_INPUT, "%s: tokenizer.json: token \"%.60s\" has no id", where, text);
        if (i >= v->n) {
            ++*left;
        } else if (*text) {
            v->text[i] = text;
            v->type[i] = TOKEN_NORMAL;
        }
    }
    return OK;
}

/* The tokenizers library numbers added tokens itself: by the vocabulary, by an earlier added token of that text, else the next free
 * number. The file's "id" says the same, in files that it wrote. */
static json_int_t added_id(const json_t *vocab, json_t *seen, const char *text, json_int_t *next)
{
    const json_t *known = json_object_get(vocab, text);
    known = json_is_integer(known) ? known : json_object_get(seen, text);
    json_int_t id = json_is_integer(known) ? json_integer_value(known) : *next;
    if (id >= *next && id < INT32_MAX)
        *next = id + 1;
    json_object_set_new(seen, text, json_integer(id));
    return id;
}

static enum code added_read(struct gguf_vocab *v, const char *where, int64_t *left)
{
    const json_t *list = json_object_get(v->root, "added_tokens"), *vocab = json_object_get(json_object_get(v->root, "model"), "vocab"), *token;
    json_int_t next = (json_int_t)json_object_size(vocab);
    json_t *seen = json_object();
    enum code c = OK;
    size_t at;
    json_array_foreach ((json_t *)list, at, token) {
        const char *text = string_at(token, "content");
        if (!*text) {
            c = fail(ERR_INPUT, "%s: tokenizer.json: added token %zu has no content", where, at);
            break;
        }
        json_int_t i = added_id(vocab, seen, text, &next);
        if (i >= v->n) {
            ++*left;
            continue;
        }
        v->text[i] = text;
        v->type[i] = json_is_true(json_object_get(token, "special")) ? TOKEN_CONTROL : TOKEN_USER_DEFINED;
    }
    json_decref(seen);
    return c;
}

static int by_text(const void *a, const void *b, void *vocab)
{
    const struct gguf_vocab *v = vocab;
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    int order = strcmp(v->text[x], v->text[y]);
    if (!order) /* an added token before a plain one before an unused one, then by id */
        order = (v->type[x] == TOKEN_NORMAL) + 2 * (v->type[x] == TOKEN_UNUSED) - (v->type[y] == TOKEN_NORMAL) - 2 * (v->type[y] == TOKEN_UNUSED);
    return order ? order : (x > y) - (x < y);
}

static void make_unused(struct gguf_vocab *v, int64_t i, const char *format)
{
    char *text = v->made + i * MADE_TEXT;
    snprintf(text, MADE_TEXT, format, (long long)i);
    v->text[i] = text;
    v->type[i] = TOKEN_UNUSED;
}

/* Ids without a text get one; of a text that occurs twice only the first id keeps it. */
static enum code texts_unique(struct gguf_vocab *v, const char *where)
{
    int64_t *order = malloc((size_t)v->n * sizeof *order);
    if (!order)
        return fail(ERR_MEMORY, "%s: out of memory for the vocabulary", where);
    int64_t doubles = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < v->n; i++) {
            if (!v->text[i])
                make_unused(v, i, "[PAD%lld]");
            order[i] = i;
        }
        qsort_r(order, (size_t)v->n, sizeof *order, by_text, v);
        doubles = 0;
        for (int64_t i = 1; i < v->n; i++)
            doubles += !strcmp(v->text[order[i]], v->text[order[i - 1]]);
        for (int64_t i = v->n - 1; i > 0; i--)
            if (!strcmp(v->text[order[i]], v->text[order[i - 1]]))
                make_unused(v, order[i], "[UNUSED %lld]");
    }
    free(order);
    return doubles ? fail(ERR_INPUT, "%s: tokenizer.json: token texts occur more than once", where) : OK;
}

/* ---- pieces: types and scores --------------------------------------------------------------------------------------- */

static int all_bytes(const struct gguf_vocab *v, const json_t *vocab)
{
    int found = 0;
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        const json_t *id = json_object_get(vocab, text);
        json_int_t i = json_integer_value(id);
        if (json_is_integer(id) && i >= 0 && i < v->n) {
            v->type[i] = TOKEN_BYTE;
            found++;
        }
    }
    return found == 256;
}

/* The two sides of a merge: "a b" or ["a", "b"]. Borrowed; 0 when it is neither. */
static int merge_sides(const json_t *merge, const char **a, size_t *na, const char **b)
{
    const char *text = json_string_value(merge), *space = text && *text ? strchr(text + 1, ' ') : NULL;
    if (space) {
        *a = text;
        *na = (size_t)(space - text);
        *b = space + 1;
        return **b != 0;
    }
    *a = json_string_value(json_array_get(merge, 0));
    *b = json_string_value(json_array_get(merge, 1));
    *na = *a ? strlen(*a) : 0;
    return *na && *b && **b;
}

static enum code scores_fill(struct gguf_vocab *v, const char *where)
{
    const json_t *model = json_object_get(v->root, "model"), *vocab = json_object_get(model, "vocab"), *given = json_object_get(model, "scores");
    const json_t *merges = json_object_get(model, "merges"), *merge;
    size_t rank, count = json_array_size(merges);
    char joined[4096];
    for (int64_t i = 0; given && i < v->n; i++) /* tokenizer.model's own */
        v->score[i] = (float)json_real_value(json_array_get(given, (size_t)i));
    if (given)
        return OK;
    for (int64_t i = 0; i < v->n; i++)
        v->score[i] = -(float)count - 1; /* made by no merge: last */
    json_array_foreach ((json_t *)merges, rank, merge) {
        const char *a, *b;
        size_t na;
        if (!merge_sides(merge, &a, &na, &b) || na + strlen(b) >= sizeof joined)
            return fail(ERR_INPUT, "%s: tokenizer.json: merge %zu is not two tokens", where, rank);
        memcpy(joined, a, na);
        strcpy(joined + na, b);
        const json_t *id = json_object_get(vocab, joined);
        json_int_t i = json_is_integer(id) ? json_integer_value(id) : -1;
        if (i >= 0 && i < v->n && v->score[i] < -(float)count)
            v->score[i] = -(float)rank;
    }
    return OK;
}

static enum code pieces_fill(struct gguf_vocab *v, const char **why, const char *where)
{
    const json_t *model = json_object_get(v->root, "model");
    const char *unknown = string_at(model, "unk_token");
    if (!all_bytes(v, json_object_get(model, "vocab"))) {
        v->kind = VOCAB_NONE;
        *why = "it lacks byte tokens <0x00> to <0xFF>";
        return OK;
    }
    for (int64_t i = 0; i < v->n && *unknown; i++)
        if (v->text[i] && !strcmp(v->text[i], unknown))
            v->type[i] = TOKEN_UNKNOWN;
    return scores_fill(v, where);
}

/* ---- whole ---------------------------------------------------------------------------------------------------------- */

enum code gguf_vocab_fill(struct gguf_vocab *v, int64_t V, const char **why, const char *where)
{
    int64_t left = 0;
    v->kind = kind_of(v->root, why);
    if (v->kind == VOCAB_NONE)
        return OK;
    v->n = V;
    v->text = calloc((size_t)V, sizeof *v->text);
    v->score = calloc((size_t)V, sizeof *v->score);
    v->type = calloc((size_t)V, sizeof *v->type);
    v->made = malloc((size_t)V * MADE_TEXT);
    if (!v->text || !v->score || !v->type || !v->made)
        return fail(ERR_MEMORY, "%s: out of memory for the vocabulary", where);
    TRY(tokens_read(v, where, &left));
    TRY(added_read(v, where, &left));
    if (left)
        log_warn("%s: %lld tokens have no row in the embedding and are left out", where, (long long)left);
    if (v->kind == VOCAB_PIECES)
        TRY(pieces_fill(v, why, where));
    return texts_unique(v, where);
}

void gguf_vocab_free(struct gguf_vocab *v)
{
    free(v->text);
    free(v->score);
    free(v->type);
    free(v->made);
    json_decref(v->root);
    memset(v, 0, sizeof *v);
}

int64_t gguf_vocab_find(const struct gguf_vocab *v, const char *text)
{
    for (int64_t i = 0; text && i < v->n; i++)
        if (v->type[i] != TOKEN_UNUSED && !strcmp(v->text[i], text))
            return i;
    return -1;
}
