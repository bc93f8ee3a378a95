/* Reads the parts of a Hugging Face tokenizer.json (https://huggingface.co/docs/tokenizers):
 *
 *   added_tokens [{id, content, special, lstrip, rstrip, single_word, normalized}]   normalizer   pre_tokenizer
 *   model {type "BPE", vocab {string: id}, merges ["a b" | ["a", "b"]], unk_token, byte_fallback, fuse_unk, ignore_merges}
 *   post_processor {TemplateProcessing | ByteLevel | RobertaProcessing | BertProcessing | Sequence}   decoder
 *
 * truncation and padding are not applied. A Unigram, WordPiece or WordLevel model is refused by name. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

enum { ID_MAX = (1 << 24) - 1, ADDED_MAX = 100000 };

/* ---- model ---- */

static enum code read_vocab(struct bpe *m, const json_t *vocab, const char *where)
{
    const char *key;
    json_t *value;
    if (!json_is_object(vocab))
        return fail(ERR_INPUT, "%s: model.vocab must be an object of strings to ids", where);
    json_object_foreach((json_t *)(uintptr_t)vocab, key, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > ID_MAX)
            return fail(ERR_INPUT, "%s: the id of \"%.100s\" must be an integer in [0, %d]", where, key, ID_MAX);
        TRY(vocab_add(&m->vocab, key, strlen(key), (int32_t)id));
    }
    return fail_in(vocab_index(&m->vocab), "%s", where);
}

/* "a b" or ["a", "b"]. A piece may hold a space only in the second form. */
static enum code merge_pieces(const json_t *merge, const char **a, size_t *a_n, const char **b, size_t *b_n)
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        const json_t *x = json_array_get(merge, 0), *y = json_array_get(merge, 1);
        if (!json_is_string(x) || !json_is_string(y))
            return fail(ERR_INPUT, "expected two strings");
        *a = json_string_value(x), *a_n = json_string_length(x);
        *b = json_string_value(y), *b_n = json_string_length(y);
        return OK;
    }
    const char *space = json_is_string(merge) ? strchr(json_string_value(merge), ' ') : NULL;
    if (space == NULL || strchr(space + 1, ' ') != NULL)
        return fail(ERR_INPUT, "expected \"a b\" or [\"a\", \"b\"]");
    *a = json_string_value(merge), *a_n = (size_t)(space - *a);
    *b = space + 1, *b_n = strlen(*b);
    return OK;
}

static enum code add_merge(struct bpe *m, int32_t rank, const char *a, size_t a_n, const char *b, size_t b_n, struct buffer *joined)
{
    int32_t left = vocab_find(&m->vocab, a, a_n), right = vocab_find(&m->vocab, b, b_n);
    joined->n = 0;
    TRY(buffer_add(joined, a, a_n));
    TRY(buffer_add(joined, b, b_n));
    int32_t id = vocab_find(&m->vocab, joined->p, joined->n);
    if (left < 0 || right < 0 || id < 0) {
        const char *missing = left < 0 ? a : right < 0 ? b : joined->p;
        size_t length = left < 0 ? a_n : right < 0 ? b_n : joined->n;
        return fail(ERR_INPUT, "\"%.*s\" is not in the vocabulary", (int)(length < 100 ? length : 100), missing);
    }
    bpe_merge_set(m, left, right, rank, id);
    return OK;
}

static enum code read_merges(struct bpe *m, const json_t *merges, const char *where)
{
    if (!json_is_array(merges))
        return fail(ERR_INPUT, "%s: model.merges must be an array", where);
    TRY(bpe_merges_reserve(m, (int64_t)json_array_size(merges)));
    struct buffer joined = {0};
    enum code c = OK;
    for (size_t i = 0; c == OK && i < json_array_size(merges); i++) {
        const char *a = NULL, *b = NULL;
        size_t a_n = 0, b_n = 0;
        c = merge_pieces(json_array_get(merges, i), &a, &a_n, &b, &b_n);
        if (c == OK)
            c = add_merge(m, (int32_t)i, a, a_n, b, b_n, &joined);
        c = fail_in(c, "%s: merge %zu", where, i);
    }
    free(joined.p);
    return c;
}

enum code tokenizer_read_bpe(struct tokenizer *t, const json_t *model, const char *where)
{
    const char *type = "BPE", *prefix = "", *suffix = "", *unk = NULL;
    double dropout = 0;
    struct bpe *m = &t->bpe;
    if (!json_is_object(model))
        return fail(ERR_INPUT, "%s: expected the object \"model\"", where);
    TRY(json_want_str(model, where, "type", &type));
    if (strcmp(type, "BPE") != 0 || json_object_get(model, "merges") == NULL)
        return fail(ERR_UNSUPPORTED, "%s: model type %s is not supported, only BPE", where,
                    strcmp(type, "BPE") != 0 ? type : "without merges");
    TRY(json_want_str(model, where, "continuing_subword_prefix", &prefix));
    TRY(json_want_str(model, where, "end_of_word_suffix", &suffix));
    TRY(json_want_f64(model, where, "dropout", &dropout));
    if (prefix[0] != 0 || suffix[0] != 0 || dropout != 0)
        return fail(ERR_UNSUPPORTED, "%s: %s of the BPE model is not supported", where,
                    prefix[0] != 0 ? "continuing_subword_prefix" : suffix[0] != 0 ? "end_of_word_suffix" : "dropout");
    TRY(json_want_str(model, where, "unk_token", &unk));
    TRY(json_want_bool(model, where, "fuse_unk", &m->fuse_unk));
    TRY(json_want_bool(model, where, "byte_fallback", &m->byte_fallback));
    TRY(json_want_bool(model, where, "ignore_merges", &m->ignore_merges));
    TRY(read_vocab(m, json_object_get(model, "vocab"), where));
    TRY(read_merges(m, json_object_get(model, "merges"), where));
    m->unk = unk == NULL ? -1 : vocab_find(&m->vocab, unk, strlen(unk));
    if (unk != NULL && m->unk < 0)
        return fail(ERR_INPUT, "%s: unk_token \"%.100s\" is not in the vocabulary", where, unk);
    bpe_finish(m);
    return OK;
}

/* ---- added tokens ---- */

/* The library numbers added tokens itself: by the vocabulary, by an earlier added token, else next after both; the file's id is a claim. */
struct added_ids { struct vocab earlier; int32_t next; };

static enum code added_id(struct added_ids *ids, const struct tokenizer *t, const char *content, int32_t *id)
{
    size_t n = strlen(content);
    *id = vocab_find(&t->bpe.vocab, content, n);
    if (*id < 0)
        *id = vocab_find(&ids->earlier, content, n);
    if (*id >= 0) {
        ids->next = *id >= ids->next ? *id + 1 : ids->next;
        return OK;
    }
    *id = ids->next++;
    return vocab_add(&ids->earlier, content, n, *id);
}

static enum code read_added_token(struct tokenizer *t, struct added_ids *ids, const json_t *node, const char *where)
{
    const char *content = NULL;
    int64_t id = 0;
    struct added_token a = {0};
    if (!json_is_object(node))
        return fail(ERR_INPUT, "%s: expected an object", where);
    TRY(json_need_str(node, where, "content", &content));
    TRY(json_need_i64(node, where, "id", 0, ID_MAX, &id));
    TRY(json_want_bool(node, where, "special", &a.special));
    TRY(json_want_bool(node, where, "lstrip", &a.lstrip));
    TRY(json_want_bool(node, where, "rstrip", &a.rstrip));
    TRY(json_want_bool(node, where, "single_word", &a.single_word));
    a.normalized = !a.special;
    TRY(json_want_bool(node, where, "normalized", &a.normalized));
    if (content[0] == 0)
        return OK;
    TRY(added_id(ids, t, content, &a.id));
    if (a.id != id)
        log_warn("%s: the added token \"%.100s\" has the id %lld here and is %d by its place; %d is used, as the tokenizers library does",
                 where, content, (long long)id, a.id, a.id);
    a.written = strdup(content);
    a.n = strlen(content);
    a.content = strdup(content);
    t->added.v[t->added.n++] = a; /* owned from here, also when half made */
    return a.written != NULL && a.content != NULL ? OK : fail(ERR_MEMORY, "no memory for the added tokens");
}

/* Tokens with `normalized` are looked for in normalised text, by what the normalizer makes of them. */
static enum code normalize_added(struct tokenizer *t)
{
    struct encoder e;
    enum code c = encoder_open(&e, t);
    for (int i = 0; c == OK && i < t->added.n; i++) {
        struct added_token *a = &t->added.v[i];
        const char *text;
        size_t n;
        if (!a->normalized)
            continue;
        c = normalize_piece(&e, a->written, strlen(a->written), &text, &n);
        char *content = c == OK ? malloc(n + 1) : NULL;
        if (content == NULL) {
            c = c != OK ? c : fail(ERR_MEMORY, "no memory for the added tokens");
            break;
        }
        memcpy(content, text, n);
        content[n] = 0;
        free(a->content);
        a->content = content;
        a->n = n;
    }
    encoder_close(&e);
    return c;
}

static enum code read_added(struct tokenizer *t, const json_t *list, const char *where)
{
    size_t n = json_array_size(list);
    if (list != NULL && !json_is_null(list) && !json_is_array(list))
        return fail(ERR_INPUT, "%s: added_tokens must be an array", where);
    if (n > ADDED_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %zu added tokens are more than %d", where, n, ADDED_MAX);
    if (n == 0)
        return OK;
    t->added.v = calloc(n, sizeof *t->added.v);
    if (t->added.v == NULL)
        return fail(ERR_MEMORY, "no memory for %zu added tokens", n);
    char here[512];
    struct added_ids ids = {.next = (int32_t)t->bpe.vocab.n};
    enum code c = OK;
    for (size_t i = 0; c == OK && i < n; i++) {
        snprintf(here, sizeof here, "%.400s: added_tokens[%zu]", where, i);
        c = read_added_token(t, &ids, json_array_get(list, i), here);
    }
    vocab_free(&ids.earlier);
    return c;
}

/* ---- post-processor ---- */

/* The ids of one special token of a template, from its table. */
static enum code template_ids(const json_t *node, const json_t *table, const char *where, struct id_list *out)
{
    const char *name = NULL;
    TRY(json_need_str(node, where, "id", &name));
    const json_t *ids = json_object_get(json_object_get(table, name), "ids");
    if (!json_is_array(ids))
        return fail(ERR_INPUT, "%s: the template uses \"%.100s\", which its special_tokens do not list", where, name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > ID_MAX)
            return fail(ERR_INPUT, "%s: the ids of \"%.100s\" must be integers in [0, %d]", where, name, ID_MAX);
        TRY(id_list_add(out, (int32_t)json_integer_value(id)));
    }
    return OK;
}

static enum code read_template(struct tokenizer *t, const json_t *node, const char *where)
{
    const json_t *single = json_object_get(node, "single");
    int seen = 0;
    if (!json_is_array(single))
        return fail(ERR_INPUT, "%s: TemplateProcessing needs the array \"single\"", where);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *special = json_object_get(item, "SpecialToken");
        if (json_is_object(special)) {
            TRY(template_ids(special, json_object_get(node, "special_tokens"), where, seen ? &t->after : &t->before));
            continue;
        }
        if (!json_is_object(json_object_get(item, "Sequence")) || seen++)
            return fail(ERR_UNSUPPORTED, "%s: a template must be special tokens around one Sequence", where);
    }
    return seen ? OK : fail(ERR_UNSUPPORTED, "%s: the template has no Sequence", where);
}

/* "cls": [string, id], "sep": [string, id] */
static enum code read_pair(const json_t *node, const char *key, const char *where, struct id_list *out)
{
    const json_t *id = json_array_get(json_object_get(node, key), 1);
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > ID_MAX)
        return fail(ERR_INPUT, "%s: expected \"%s\": [text, id]", where, key);
    return id_list_add(out, (int32_t)json_integer_value(id));
}

static enum code read_post_processor(struct tokenizer *t, const json_t *node, const char *where, int depth)
{
    const char *type = NULL;
    if (!json_is_object(node) || depth > 8)
        return fail(ERR_INPUT, "%s: expected an object with a \"type\", at most 8 deep", where);
    TRY(json_need_str(node, where, "type", &type));
    if (strcmp(type, "ByteLevel") == 0)
        return OK; /* moves offsets only */
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(node, "processors");
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(read_post_processor(t, json_array_get(list, i), where, depth + 1));
        return OK;
    }
    int roberta = strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0;
    if (!roberta && strcmp(type, "TemplateProcessing") != 0)
        return fail(ERR_UNSUPPORTED, "%s: post-processor %s is not supported", where, type);
    if (t->before.n + t->after.n > 0)
        return fail(ERR_UNSUPPORTED, "%s: two post-processors that add tokens are not supported", where);
    if (!roberta)
        return read_template(t, node, where);
    TRY(read_pair(node, "cls", where, &t->before));
    return read_pair(node, "sep", where, &t->after);
}

/* ---- all of it ---- */

int32_t tokenizer_id(const struct tokenizer *t, const char *s, size_t n)
{
    for (int i = 0; i < t->added.n; i++)
        if (strlen(t->added.v[i].written) == n && memcmp(t->added.v[i].written, s, n) == 0)
            return t->added.v[i].id;
    return vocab_find(&t->bpe.vocab, s, n);
}

static int first_of(const struct tokenizer *t, const char *const *names)
{
    for (; *names != NULL; names++)
        if (tokenizer_id(t, *names, strlen(*names)) >= 0)
            return tokenizer_id(t, *names, strlen(*names));
    return -1;
}

/* The template's outermost tokens, else the usual names. */
static void find_ends(struct tokenizer *t)
{
    static const char *const starts[] = {"<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", NULL};
    static const char *const ends[] = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", NULL};
    t->bos = t->before.n > 0 ? t->before.p[0] : first_of(t, starts);
    t->eos = t->after.n > 0 ? t->after.p[t->after.n - 1] : first_of(t, ends);
}

enum code tokenizer_read_json(struct tokenizer *t, json_t *root, const char *where)
{
    char here[512];
    snprintf(here, sizeof here, "%.400s: post_processor", where);
    const json_t *post = json_object_get(root, "post_processor");
    TRY(tokenizer_read_bpe(t, json_object_get(root, "model"), where));
    TRY(read_added(t, json_object_get(root, "added_tokens"), where));
    TRY(steps_read_normalizer(&t->normalizer, json_object_get(root, "normalizer"), where));
    TRY(steps_read_pretokenizer(&t->pretokenizer, json_object_get(root, "pre_tokenizer"), where));
    TRY(decoders_read(&t->decoders, json_object_get(root, "decoder"), where));
    if (post != NULL && !json_is_null(post))
        TRY(read_post_processor(t, post, here, 0));
    TRY(normalize_added(t));
    added_index(&t->added);
    find_ends(t);
    t->V = t->bpe.vocab.n_ids;
    for (int i = 0; i < t->added.n; i++)
        t->V = t->added.v[i].id >= t->V ? (int64_t)t->added.v[i].id + 1 : t->V;
    for (int k = 0; k < 2; k++) {
        const struct id_list *l = k == 0 ? &t->before : &t->after;
        for (int64_t i = 0; i < l->n; i++)
            if (l->p[i] >= t->V)
                return fail(ERR_INPUT, "%s: the id %d is beyond the vocabulary of %lld", here, l->p[i], (long long)t->V);
    }
    return OK;
}
