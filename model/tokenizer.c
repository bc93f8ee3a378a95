/* Which tokenizer a checkpoint was made with. tokenizer.json may live inside an .h5, so it is taken from the companions;
 * vocab.json + merges.txt only from a directory. */
#include <string.h>

#include "parts.h"

enum code model_tokenizer(struct tokenizer **t, struct checkpoint *ck)
{
    const struct ckpt_companion *list;
    int n = ckpt_companions(ck, &list), has_vocab = 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(list[i].name, "tokenizer.json") == 0)
            return fail_in(tokenizer_parse(t, list[i].bytes, list[i].n, list[i].name), "%s", ckpt_path(ck));
        has_vocab |= strcmp(list[i].name, "vocab.json") == 0;
    }
    if (has_vocab && io_is_dir(ckpt_path(ck)))
        return tokenizer_open(t, ckpt_path(ck));
    if (ckpt_arch(ck)->V == 256)
        return tokenizer_open(t, "bytes");
    return fail(ERR_USAGE, "%s has no tokenizer.json; name a tokenizer (a path, or bytes for a byte-level model)", ckpt_path(ck));
}

static const struct ckpt_companion *companion(struct checkpoint *ck, const char *name)
{
    const struct ckpt_companion *list;
    int n = ckpt_companions(ck, &list);
    for (int i = 0; i < n; i++)
        if (strcmp(list[i].name, name) == 0)
            return &list[i];
    return NULL;
}

/* Pieces and their ids: model.vocab of a tokenizer.json, all of a vocab.json. NULL when it cannot be read, which is no business here. */
static json_t *pieces(const struct ckpt_companion *c, const char *where)
{
    json_t *root = NULL;
    if (json_parse_object(c->bytes, c->n, where, &root) != OK)
        return NULL;
    json_t *inside = json_object_get(json_object_get(root, "model"), "vocab"), *found = strcmp(c->name, "vocab.json") == 0 ? root : inside;
    json_incref(found);
    json_decref(root);
    return found;
}

static int same_pieces(struct checkpoint *a, struct checkpoint *b, const char *name)
{
    const struct ckpt_companion *x = companion(a, name), *y = companion(b, name);
    if (!x || !y || (x->n == y->n && memcmp(x->bytes, y->bytes, x->n) == 0))
        return 1;
    json_t *p = pieces(x, ckpt_path(a)), *q = pieces(y, ckpt_path(b));
    int same = !p || !q || json_equal(p, q);
    json_decref(p);
    json_decref(q);
    return same;
}

enum code model_same_tokens(struct checkpoint *a, struct checkpoint *b)
{
    static const char *const files[] = {"tokenizer.json", "vocab.json"};
    int64_t x = ckpt_arch(a)->V, y = ckpt_arch(b)->V;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (!same_pieces(a, b, files[i]))
            return fail(ERR_USAGE, "%s and %s have different tokenizers (%s): their probabilities are of other tokens, so one cannot teach or measure the other",
                        ckpt_path(a), ckpt_path(b), files[i]);
    if (x != y)
        return fail(ERR_USAGE, "%s has a vocabulary of %lld tokens, %s one of %lld: only models of the same tokens can be compared", ckpt_path(a), (long long)x,
                    ckpt_path(b), (long long)y);
    return OK;
}
