/* Floor 2: text and tokens at rest. Token files, tokenizers, and the deterministic order in which a run sees them. */
#ifndef GQAKIT_DATA_DATA_H
#define GQAKIT_DATA_DATA_H

#include "base/base.h"
#include "teacher_cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- tokenizers --------------------------------------------------------------------------------------------------- */

struct tokenizer;
/* PATH: a tokenizer.json, a directory with one (or with vocab.json + merges.txt), or the word "bytes" (ids 0..255, no file).
 * Byte-pair encoding: Llama-2 style (metaspace, byte fallback) and GPT-2 style (byte level, PCRE2 split pattern). Anything else in
 * the file is ERR_UNSUPPORTED by name. */
enum code tokenizer_open(struct tokenizer **t, const char *path) MUST_USE;
enum code tokenizer_parse(struct tokenizer **t, const char *bytes, size_t n, const char *where) MUST_USE; /* fuzz entry */
void tokenizer_close(struct tokenizer *t);
int64_t tokenizer_vocab(const struct tokenizer *t);
int tokenizer_bos(const struct tokenizer *t); /* -1 none; as post_processor / added tokens say */
int tokenizer_eos(const struct tokenizer *t);
const char *tokenizer_sha256(const struct tokenizer *t); /* of the file's bytes; "bytes" for the byte tokenizer */
/* *ids malloc'ed. Text that is not UTF-8 is ERR_INPUT (except for "bytes"). specials: 1 applies the post-processor (adds <s> ...)
 * and recognises special tokens in the text; 0: their spelling is plain text, nothing is added. Added tokens that are not special
 * (runs of spaces in GPT-NeoX) belong to the vocabulary and are recognised in both. Safe to call from several threads. */
enum code tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int specials, int32_t **ids, int64_t *n_ids) MUST_USE;
/* *text malloc'ed and NUL ended. Special tokens are left out. Bytes come out as they are, so the text of ids that end inside
 * a character is not valid UTF-8: whoever needs that (JSON) must check. An unknown id is ERR_INPUT. */
enum code tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n_ids, char **text, size_t *n) MUST_USE;

/* Bytes of text that tokens stand for, remembered for each id. V: ids below it; bos, eos: the document's marks, -1 none. */
struct text_bytes;
enum code text_bytes_open(struct text_bytes **b, const struct tokenizer *t, int64_t V, int bos, int eos) MUST_USE;
void text_bytes_close(struct text_bytes *b); /* of NULL too */
/* *sum += those of `id` behind `before` (-1: the first of its document). Special tokens and ids without a text: 0. */
enum code text_bytes_add(struct text_bytes *b, int32_t before, int32_t id, int64_t *sum) MUST_USE;

/* ---- token files -------------------------------------------------------------------------------------------------- */

enum data_format { DATA_AUTO, DATA_LLMC, DATA_RAW, DATA_MEGATRON, DATA_TEXT, DATA_JSONL };

/* What DATA_AUTO would take `path` for, by magic and extension. Text and JSON lines need a tokenizer. */
enum code data_detect_format(const char *path, enum data_format *format) MUST_USE;

/* Sequences of a calibration are no longer unless gqa-convert --sequence-length says so. */
enum { CALIBRATION_LONGEST = 1024 };

struct tokens_options {
    enum data_format format; /* auto: by magic and extension (.bin .idx .txt .jsonl, each also .gz) */
    enum dtype dtype;        /* headerless: u16 or u32 given as DT_U16 / DT_I32; DT_NONE: by V <= 65536, said in a log line */
    int64_t V;               /* ids >= V are ERR_INPUT with their offset; 0: not checked */
    int eos;                 /* document end: put after each text document; -1 none */
    int bos;                 /* put before each text document; -1 none */
    const char *text_field;  /* jsonl; NULL = "text" */
    const struct tokenizer *tokenizer; /* text and jsonl need one */
    const char *cache_dir;   /* where tokenised text is cached by the hash of its inputs; NULL: beside nothing, in memory */
};

/* Text: a .txt is one document, unless it has lines that are exactly <|endoftext|>, which separate documents (TinyStories) and are
 * never tokenised, whatever the tokenizer; a .jsonl has one document per line. Special tokens in the text are plain text.
 * Megatron: PATH may be the .idx, the .bin or their common stem. Its document index is checked and then not used: documents
 * end where the eos id stands in the stream.
 * An opened stream of tokens. bytes = text bytes the tokens stand for (sidecar FILE.json or known from tokenising), -1 unknown.
 * An optional FILE.mask (u8 per token, 1 = learnable target) is picked up by itself; a wrong size is ERR_INPUT. */
struct tokens;
enum code tokens_open(struct tokens **t, const char *path, const struct tokens_options *options) MUST_USE;
void tokens_close(struct tokens *t);
int64_t tokens_count(const struct tokens *t);
int64_t tokens_bytes(const struct tokens *t);
int tokens_has_mask(const struct tokens *t);
/* Of the input (the text, not its tokens), for provenance and resume checks. Made on the first call: not from two threads at once. */
const char *tokens_sha256(const struct tokens *t);
void tokens_get(const struct tokens *t, int64_t from, int64_t n, int32_t *ids); /* bounds CHECKed */
void tokens_get_mask(const struct tokens *t, int64_t from, int64_t n, uint8_t *mask); /* all 1 without a mask */
/* Writes llm.c form (magic 20240520 u16, or 20240801 u32) with its sidecar, atomically. */
enum code tokens_write(const char *path, const int32_t *ids, int64_t n, int64_t V, int64_t bytes, int eos, const char *tokenizer_sha256) MUST_USE;

/* ---- batches ------------------------------------------------------------------------------------------------------ */

/* Rows of T tokens. targets[b,t] = next token, -1 where masked (FILE.mask, a document boundary when packing). positions restart
 * and segments count up at each document when packing; else positions 0..T-1 and segments 0. All [B,T], i32, caller's memory. */
struct batch { int64_t B, T; int32_t *ids, *targets, *positions, *segments; };
enum code batch_alloc(struct batch *b, int64_t B, int64_t T) MUST_USE;
void batch_free(struct batch *b);

/* Windows of T+1 tokens at stride T inside each file. Sample i of epoch e is window P(seed,e)(i); the global sample number is
 * e * windows + i. Nothing is remembered between calls. */
struct sampler {
    struct tokens *const *files;
    int n_files;
    int64_t T;
    int eos;      /* document end id for packing; -1 none */
    int pack;     /* 1: attention and positions stay inside documents */
    int shuffle;  /* 0: file order (validation) */
    uint64_t seed;
    int64_t windows; /* set by sampler_init */
};
enum code sampler_init(struct sampler *s) MUST_USE; /* ERR_INPUT if no file holds a window */
int64_t sampler_window(const struct sampler *s, int64_t sample); /* its window, in file order */
/* Fills rows [0,B) from samples first .. first+B-1. Returns the number of valid targets. */
int64_t sampler_fill(const struct sampler *s, int64_t first, struct batch *b);
int64_t sampler_count(const struct sampler *s, int64_t first, int64_t n); /* valid targets of samples [first, first+n) */

#ifdef __cplusplus
}
#endif
#endif
