/* Inside of data/: an opened stream of tokens, whatever it came from. */
#ifndef GQAKIT_DATA_TOKENS_H
#define GQAKIT_DATA_TOKENS_H

#include "data.h"

struct tokens {
    char *path;                  /* for messages: the file that holds the ids */
    int64_t n, bytes;            /* tokens; text bytes or -1 */
    const unsigned char *ids;    /* stored ids, little-endian, `width` bytes each; unaligned; NULL for Megatron pieces */
    int width, is_signed;        /* 1, 2, 4 or 8 */
    struct io_map map;           /* the file that holds them */
    int32_t *memory;             /* owned ids of text tokenised without a cache; then ids points here */
    struct io_map mask;
    struct io_map index;         /* Megatron .idx */
    int64_t n_sequences;         /* Megatron, when its sequences do not lie one after another: */
    int64_t *starts;             /*   [n_sequences + 1] token number of each sequence's first token */
    const unsigned char *pointers; /*   [n_sequences] i64 byte offsets in map, unaligned */
    char sha256[65];             /* "" until asked for */
};

enum { LLMC_HEADER = 1024, LLMC_U16 = 20240520, LLMC_U32 = 20240801, LLMC_EVAL = 20240522 };

/* Each fills a zeroed *t; the caller closes it also after an error. */
enum code tokens_open_llmc(struct tokens *t, const char *path) MUST_USE;
enum code tokens_open_raw(struct tokens *t, const char *path, enum dtype dtype, int64_t V) MUST_USE;
enum code tokens_open_megatron(struct tokens *t, const char *path) MUST_USE;
enum code tokens_open_text(struct tokens *t, const char *path, const struct tokens_options *o, int jsonl) MUST_USE;

/* Megatron's index alone, against a .bin of bin_bytes (fuzz entry). */
enum code megatron_read_index(struct tokens *t, const unsigned char *p, size_t n, const char *where, int64_t bin_bytes) MUST_USE;
/* llm.c header alone, against a file of n bytes (fuzz entry). */
enum code llmc_read_header(struct tokens *t, const unsigned char *p, size_t n, const char *where) MUST_USE;

enum code tokens_check_ids(const struct tokens *t, int64_t V) MUST_USE; /* every id in [0, V), V = 0: in [0, 2^31) */

/* tokens_file.c: the sidecar FILE.json */
struct sidecar { enum dtype dtype; int64_t vocab, bytes; int eos; char tokenizer_sha256[65], input_sha256[65]; };
enum code sidecar_read(struct sidecar *s, const char *token_path, int *found) MUST_USE;
enum code tokens_store(const char *path, const int32_t *ids, int64_t n, const struct sidecar *s) MUST_USE;

/* text_reader.c: plain or gzip'ed text as documents */
struct text_reader;
enum code text_reader_open(struct text_reader **r, const char *path, int jsonl, const char *field) MUST_USE;
/* *text stays valid until the next call; *text NULL at the end. */
enum code text_reader_next(struct text_reader *r, const char **text, size_t *n) MUST_USE;
int64_t text_reader_position(struct text_reader *r); /* bytes of the file consumed, for the progress line */
int64_t text_reader_line(const struct text_reader *r);
void text_reader_close(struct text_reader *r);

/* little-endian reads at any alignment */
static inline uint64_t read_le(const unsigned char *p, int width)
{
    uint64_t v = 0;
    for (int i = width - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

#endif
