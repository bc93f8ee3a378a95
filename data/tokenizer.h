/* Inside of data/: how a tokenizer.json becomes ids. The order is that of the Hugging Face tokenizers library:
 *
 *   text -> added tokens cut out -> normalizer steps -> normalized added tokens cut out -> pre-tokenizer steps -> BPE -> template
 *
 * Everything before BPE is a chain of steps; a step receives one piece of text and hands pieces on to the next step, so memory
 * is a buffer per step whatever the text. What a file asks for and we do not have is refused by name when it is read. */
#ifndef GQAKIT_DATA_TOKENIZER_H
#define GQAKIT_DATA_TOKENIZER_H

#include <jansson.h>
#include "data.h"

/* ---- growing buffers (buffer.c) ---- */
struct buffer { char *p; size_t n, capacity; };
enum code buffer_need(struct buffer *b, size_t more) MUST_USE; /* room for `more` bytes after n */
enum code buffer_add(struct buffer *b, const void *bytes, size_t n) MUST_USE;
struct id_list { int32_t *p; int64_t n, capacity; };
enum code id_list_add(struct id_list *l, int32_t id) MUST_USE;
enum code id_list_add_all(struct id_list *l, const int32_t *ids, int64_t n) MUST_USE;

/* ---- characters (utf8.c) ---- */
/* Offset of the first byte that is not part of valid UTF-8 (no surrogates, no overlong forms), n if there is none. */
size_t utf8_check(const char *p, size_t n);
size_t utf8_length(unsigned char lead);                     /* 1..4 for a valid lead byte */
uint32_t utf8_read(const char *p, size_t *length);          /* p must be valid */
size_t utf8_write(char out[4], uint32_t c);
size_t utf8_back(const char *p, size_t at);                 /* start of the character that ends before `at` */
int char_is_space(uint32_t c);                              /* Unicode White_Space */
int char_is_numeric(uint32_t c);                            /* Nd, Nl, No */
int char_is_word(uint32_t c);                               /* Alphabetic, marks, Nd, connectors, joiners */
int char_is_punctuation(uint32_t c);                        /* P*, and the ASCII symbols */

/* ---- strings <-> ids (vocab.c) ---- */
struct vocab {
    struct buffer text;            /* all strings, one after another */
    struct vocab_entry { size_t at; uint32_t n; int32_t id; } *entries;
    int64_t n, capacity;
    uint32_t *slots;               /* open addressing: 1 + index into entries; 0 free */
    uint32_t n_slots;              /* power of two */
    uint64_t key;                  /* hash_key() */
    int32_t *by_id;                /* index into entries; -1: a hole */
    int64_t n_ids;
};
enum code vocab_add(struct vocab *v, const char *s, size_t n, int32_t id) MUST_USE;
int32_t vocab_find(const struct vocab *v, const char *s, size_t n); /* -1: absent */
enum code vocab_index(struct vocab *v) MUST_USE;                    /* builds by_id, after the last add */
const char *vocab_text(const struct vocab *v, int32_t id, size_t *n); /* NULL: no such id */
void vocab_free(struct vocab *v);

/* ---- byte-pair merges (bpe.c) ---- */
struct merge { uint64_t pair; int32_t rank, id; }; /* pair = left << 32 | right; rank < 0: free slot */
struct bpe {
    struct vocab vocab;
    struct merge *merges;          /* open addressing */
    uint32_t n_merge_slots;        /* power of two */
    uint64_t merge_key;            /* odd, from hash_key() */
    int64_t n_merges;
    int32_t unk;                   /* -1 none */
    int fuse_unk, byte_fallback, ignore_merges;
    int32_t byte_ids[256];         /* <0x00>..<0xFF>; -1 absent */
    int32_t ascii_ids[128];        /* ids of the one-byte strings */
    int split_at_meta;             /* 1: no merge crosses from another character into U+2581, so words can be cut there */
};
enum code bpe_merges_reserve(struct bpe *m, int64_t n) MUST_USE;
void bpe_merge_set(struct bpe *m, int32_t left, int32_t right, int32_t rank, int32_t id); /* a later rank replaces */
void bpe_finish(struct bpe *m);    /* tables above, after vocabulary and merges are in */
void bpe_free(struct bpe *m);

struct symbol { int32_t id, prev, next; }; /* id -1: merged away */
struct candidate { int32_t rank, at, id; };
struct word_cache;
struct bpe_scratch {
    struct symbol *symbols;
    int64_t symbols_capacity;
    struct candidate *heap;
    int64_t heap_n, heap_capacity;
    struct word_cache *cache;      /* NULL until a text is long enough to pay for it */
};
enum code bpe_encode(const struct bpe *m, struct bpe_scratch *s, const char *word, size_t n, struct id_list *out) MUST_USE;
enum code bpe_scratch_cache(struct bpe_scratch *s) MUST_USE; /* switches the word cache on */
void bpe_scratch_free(struct bpe_scratch *s);

/* ---- patterns (pattern.c) ---- */
struct pattern; /* a literal string or a compiled regular expression */
enum code pattern_literal(struct pattern **p, const char *s, size_t n) MUST_USE;
enum code pattern_regex(struct pattern **p, const char *s, size_t n, const char *where) MUST_USE;
void pattern_free(struct pattern *p);
struct pattern_scratch;
enum code pattern_scratch_new(struct pattern_scratch **s) MUST_USE;
void pattern_scratch_free(struct pattern_scratch *s);
/* Next match in text[0, n) at or after `from`; *found 0 when there is none. Empty matches are reported. */
enum code pattern_find(const struct pattern *p, struct pattern_scratch *s, const char *text, size_t n, size_t from, int *found,
                       size_t *start, size_t *end) MUST_USE;

/* ---- steps (steps.c reads and frees them, normalize.c and pretokenize.c run them) ---- */
enum step_kind {
    STEP_PREPEND, STEP_REPLACE, STEP_UNICODE, STEP_STRIP, STEP_BYTE_MAP,   /* normalizers: one piece in, one out */
    STEP_PREFIX_SPACE, STEP_SPLIT, STEP_METASPACE /* pre-tokenizers: one in, several out */
};
enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_PREVIOUS, SPLIT_NEXT, SPLIT_CONTIGUOUS };
enum unicode_form { FORM_NFC, FORM_NFD, FORM_NFKC, FORM_NFKD };
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };
enum char_class { CLASS_NONE, CLASS_SPACE, CLASS_NUMERIC, CLASS_PUNCTUATION };
struct step {
    enum step_kind kind;
    struct pattern *pattern;       /* REPLACE, SPLIT, METASPACE (the replacement, to split at) */
    char *text;                    /* PREPEND: what; REPLACE: content; METASPACE: replacement; owned */
    size_t text_n;
    int a, b;                      /* SPLIT: behavior, invert; UNICODE: form; STRIP: left, right; METASPACE: scheme, split */
    enum char_class class;         /* SPLIT by a kind of character instead of a pattern */
};
#define STEPS_MAX 32
struct steps { struct step v[STEPS_MAX]; int n; };
enum code steps_read_normalizer(struct steps *s, const json_t *node, const char *where) MUST_USE;
enum code steps_read_pretokenizer(struct steps *s, const json_t *node, const char *where) MUST_USE;
void steps_free(struct steps *s);
enum code step_pattern_read(struct pattern **p, const json_t *node, const char *where) MUST_USE; /* {"String": s} | {"Regex": s} */

/* ---- GPT-2's byte level (byte_level.c) ---- */
int byte_char(unsigned char byte);  /* GPT-2's printable character for a byte */
int byte_of_char(uint32_t c);       /* and back; -1 */
enum code byte_chars_add(struct buffer *out, const char *text, size_t n) MUST_USE; /* the characters of n bytes, as UTF-8 */

/* ---- decoders (decode.c) ---- */
enum decoder_kind { DECODE_BYTE_LEVEL, DECODE_REPLACE, DECODE_BYTE_FALLBACK, DECODE_FUSE, DECODE_STRIP, DECODE_METASPACE };
struct decoder { enum decoder_kind kind; struct pattern *pattern; char *text; size_t text_n; int a, b; };
struct decoders { struct decoder v[STEPS_MAX]; int n; };
enum code decoders_read(struct decoders *d, const json_t *node, const char *where) MUST_USE;
void decoders_free(struct decoders *d);

/* ---- added tokens (added.c) ---- */
struct added_token {
    char *written;                 /* as the file has it, NUL ended */
    char *content;                 /* as looked for: normalised if `normalized` */
    size_t n;
    int32_t id;
    int special, lstrip, rstrip, single_word, normalized;
};
struct added_tokens {
    struct added_token *v;         /* sorted by first byte, longest first, so that the first hit is the one wanted */
    int n;
    int32_t first[2][256];         /* [normalized][byte]: index of the first candidate; -1 none */
};
void added_index(struct added_tokens *a);
/* Next added token of the given table in text at or after *at. Returns its index and [*start, *end) after stripping, -1 none;
 * *at becomes where to look next. `floor`: text before it is already taken. skip_special: specials are plain text. */
int added_find(const struct added_tokens *a, int normalized, int skip_special, const char *text, size_t n, size_t *at,
               size_t floor, size_t *start, size_t *end);
void added_free(struct added_tokens *a);

/* ---- the tokenizer (tokenizer.c runs it, tokenizer_json.c and tokenizer_dir.c read it) ---- */
struct tokenizer {
    int bytes;                     /* the file-less byte tokenizer */
    char sha256[65];
    int64_t V;
    int bos, eos;
    struct added_tokens added;
    struct steps normalizer, pretokenizer;
    struct bpe bpe;
    struct id_list before, after;  /* what the template puts around a text */
    struct decoders decoders;
};
enum code tokenizer_read_json(struct tokenizer *t, json_t *root, const char *where) MUST_USE;
enum code tokenizer_read_bpe(struct tokenizer *t, const json_t *model, const char *where) MUST_USE;
enum code tokenizer_read_directory(struct tokenizer *t, const char *dir) MUST_USE; /* vocab.json and merges.txt */
enum code tokenizer_read_names(struct tokenizer *t, const char *dir) MUST_USE;     /* bos and eos of tokenizer_config.json */
int32_t tokenizer_id(const struct tokenizer *t, const char *s, size_t n);          /* added tokens, then the vocabulary; -1 */

/* What one thread needs while encoding; kept between texts by those who encode many. */
struct encoder {
    const struct tokenizer *t;
    int specials;
    struct pattern_scratch *patterns;
    struct bpe_scratch bpe;
    struct buffer scratch[STEPS_MAX]    ; /* one per step that rewrites */
    struct buffer normal[2];
    struct id_list *out;
};
enum code encoder_open(struct encoder *e, const struct tokenizer *t) MUST_USE;
enum code encoder_add(struct encoder *e, const char *text, size_t n, int specials, struct id_list *out) MUST_USE; /* appends */
void encoder_close(struct encoder *e);
enum code normalize_piece(struct encoder *e, const char *text, size_t n, const char **out, size_t *out_n) MUST_USE;
enum code pretokenize_piece(struct encoder *e, const char *text, size_t n, int head) MUST_USE; /* to the end: ids are added */

#endif
