/* A vocabulary on its way from tokenizer.json into GGUF; see gguf_vocab.c. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_GGUF_TOKENIZER_H
#define GQAKIT_CHECKPOINTS_GGUF_TOKENIZER_H

#include "gguf.h"
#include "gguf_write.h"

/* llama.cpp's token types. */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5, TOKEN_BYTE = 6 };
enum gguf_vocab_kind { VOCAB_NONE, VOCAB_BYTES /* "gpt2": byte-level BPE */, VOCAB_PIECES /* "llama": SentencePiece */ };

struct gguf_vocab {
    enum gguf_vocab_kind kind;
    int64_t n;          /* as many as the embedding has rows */
    const char **text;  /* [n] borrowed from the JSON or from `made`; every one once */
    float *score;       /* [n] */
    int32_t *type;      /* [n] */
    char *made;         /* the texts of unused ids */
    json_t *root;       /* tokenizer.json, or what vocab.json and merges.txt say in its form */
};

const struct ckpt_companion *gguf_companion(const struct ckpt_companion *list, int n, const char *name); /* NULL if absent */
/* v->root from the companions; NULL without a tokenizer. `settings`: tokenizer_config.json or NULL. */
enum code gguf_tokenizer_read(struct gguf_vocab *v, const struct ckpt_companion *list, int n, const json_t *settings, const char *where) MUST_USE;
/* Fills the rest from v->root. kind VOCAB_NONE, with the reason in *why, where llama.cpp has no such tokenizer. */
enum code gguf_vocab_fill(struct gguf_vocab *v, int64_t V, const char **why, const char *where) MUST_USE;
void gguf_vocab_free(struct gguf_vocab *v);
int64_t gguf_vocab_find(const struct gguf_vocab *v, const char *text); /* -1: no such token */
/* gguf_sentencepiece.c: tokenizer.model in the form of tokenizer.json, the scores beside the vocabulary; a new reference. */
enum code gguf_sentencepiece(const char *bytes, size_t n, const char *where, json_t **root) MUST_USE;
/* tokenizer.ggml.pre of a byte-level tokenizer: "gpt-2", "llama-bpe" ...; NULL: llama.cpp has none like it. */
const char *gguf_pre_name(const json_t *root);
/* The pre_tokenizer that a class named in tokenizer_config.json stands for; a new reference. GPT-2's, with a warning, when unknown. */
json_t *gguf_pre_of_class(const char *class, const char *where);

#endif
