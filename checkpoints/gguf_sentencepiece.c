/* SentencePiece's tokenizer.model, for models that come without tokenizer.json: a protocol buffer (google/sentencepiece,
 * sentencepiece_model.proto; wire format: key = number << 3 | type, type 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes).
 *   ModelProto      1 pieces (repeated)   2 trainer   3 normalizer
 *   SentencePiece   1 text   2 score (f32)   3 type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte (llama.cpp's numbers)
 *   TrainerSpec     3 kind: 1 unigram, 2 BPE      NormalizerSpec   3 adds a space before the text (true when absent)
 * Made into what gguf_vocab.c reads: the members of tokenizer.json, and the scores by id. */
#include <string.h>

#include "gguf_tokenizer.h"

struct wire { const unsigned char *p, *end; };
struct field { uint64_t number, value; struct wire bytes; unsigned type; };
struct model { json_t *vocab, *scores, *added; const char *unknown; uint64_t kind, prefix; int64_t pieces; };

enum { VARINT = 0, EIGHT = 1, BYTES = 2, FOUR = 5, KIND_BPE = 2 };

static int varint(struct wire *w, uint64_t *v)
{
    *v = 0;
    for (unsigned shift = 0; shift < 64 && w->p < w->end; shift += 7) {
        unsigned char byte = *w->p++;
        *v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return 1;
    }
    return 0;
}

/* The next field: 1, 0 at the end, -1 when malformed. */
static int next(struct wire *w, struct field *f)
{
    uint64_t key, n;
    if (w->p == w->end)
        return 0;
    if (!varint(w, &key))
        return -1;
    memset(f, 0, sizeof *f);
    f->number = key >> 3;
    f->type = (unsigned)(key & 7);
    if (f->type == VARINT)
        return varint(w, &f->value) ? 1 : -1;
    if (f->type == BYTES && !varint(w, &n))
        return -1;
    n = f->type == BYTES ? n : f->type == EIGHT ? 8 : f->type == FOUR ? 4 : UINT64_MAX;
    if (n > (uint64_t)(w->end - w->p))
        return -1;
    f->bytes = (struct wire){w->p, w->p + n};
    w->p += n;
    return 1;
}

static int piece_read(struct model *m, struct wire w)
{
    struct field f;
    struct wire text = {NULL, NULL};
    uint64_t type = TOKEN_NORMAL;
    float score = 0;
    int more;
    while ((more = next(&w, &f)) > 0) {
        if (f.number == 1 && f.type == BYTES)
            text = f.bytes;
        else if (f.number == 2 && f.type == FOUR)
            memcpy(&score, f.bytes.p, sizeof score);
        else if (f.number == 3 && f.type == VARINT)
            type = f.value;
    }
    json_t *string = json_stringn((const char *)text.p, text.p ? (size_t)(text.end - text.p) : 0);
    if (more < 0 || !string || !json_string_length(string) || strlen(json_string_value(string)) != json_string_length(string)) {
        json_decref(string);
        return 0; /* no text, or no UTF-8, or a NUL in it */
    }
    json_object_set_new(m->vocab, json_string_value(string), json_integer(m->pieces++));
    json_array_append_new(m->scores, json_real(score == score && score - score == 0 ? (double)score : 0));
    if (type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED)
        json_array_append_new(m->added, json_pack("{s:O, s:b}", "content", string, "special", type == TOKEN_CONTROL));
    if (type == TOKEN_UNKNOWN && !m->unknown)
        m->unknown = json_object_iter_key(json_object_iter_at(m->vocab, json_string_value(string)));
    json_decref(string);
    return 1;
}

/* The number in field `number` of a message, or what *v was. */
static int number_read(struct wire w, uint64_t number, uint64_t *v)
{
    struct field f;
    int more;
    while ((more = next(&w, &f)) > 0)
        if (f.number == number && f.type == VARINT)
            *v = f.value;
    return more == 0;
}

static int model_read(struct model *m, struct wire w)
{
    struct field f;
    int more, good = 1;
    while (good && (more = next(&w, &f)) > 0) {
        if (f.number == 1 && f.type == BYTES)
            good = piece_read(m, f.bytes);
        else if (f.number == 2 && f.type == BYTES)
            good = number_read(f.bytes, 3, &m->kind);
        else if (f.number == 3 && f.type == BYTES)
            good = number_read(f.bytes, 3, &m->prefix);
    }
    return good && more == 0 && m->pieces > 0;
}

enum code gguf_sentencepiece(const char *bytes, size_t n, const char *where, json_t **root)
{
    struct model m = {json_object(), json_array(), json_array(), NULL, 1, 1, 0};
    const unsigned char *p = (const unsigned char *)bytes;
    *root = NULL;
    enum code c = model_read(&m, (struct wire){p, p + n}) ? OK : fail(ERR_INPUT, "%s: tokenizer.model is no SentencePiece model", where);
    if (c == OK)
        *root = json_pack("{s:{s:s, s:b, s:s, s:O, s:O}, s:O, s:o}", "model", "type", m.kind == KIND_BPE ? "BPE" : "Unigram", "byte_fallback", 1,
                          "unk_token", m.unknown ? m.unknown : "", "vocab", m.vocab, "scores", m.scores, "added_tokens", m.added, "normalizer",
                          m.prefix ? json_pack("{s:s, s:s}", "type", "Prepend", "prepend", "\xe2\x96\x81") : json_null());
    if (c == OK && !*root)
        c = fail(ERR_MEMORY, "%s: out of memory for tokenizer.model", where);
    json_decref(m.vocab);
    json_decref(m.scores);
    json_decref(m.added);
    return c;
}
