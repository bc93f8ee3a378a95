/* Any bytes as tokenizer.json, tokenizer.model and tokenizer_config.json of a model that becomes GGUF: every token text occurs once, none is empty. */
#include <stdlib.h>
#include <string.h>

#include "checkpoints/gguf_tokenizer.h"

enum { V = 300 };

static void vocabulary(const char *name, const char *bytes, size_t n)
{
    struct ckpt_companion file = {name, bytes, n};
    struct gguf_vocab v = {0};
    const char *why = "";
    enum code c = gguf_tokenizer_read(&v, &file, 1, NULL, "fuzz");
    if (c == OK && v.root)
        c = gguf_vocab_fill(&v, V, &why, "fuzz");
    for (int64_t i = 0; c == OK && v.kind != VOCAB_NONE && i < V; i++) {
        CHECK(v.text[i] && *v.text[i] && v.type[i] >= TOKEN_NORMAL && v.type[i] <= TOKEN_BYTE);
        for (int64_t k = 0; k < i; k++)
            CHECK(strcmp(v.text[i], v.text[k]) != 0);
    }
    gguf_vocab_free(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    char *copy = malloc(n + 1);
    struct arch a;
    struct gguf_buffer b = {0};
    if (!copy)
        return 0;
    memcpy(copy, bytes, n);
    copy[n] = 0;
    vocabulary("tokenizer.json", copy, n);
    vocabulary("tokenizer.model", copy, n);
    struct ckpt_companion files[] = {{"tokenizer.json", copy, n}, {"tokenizer_config.json", copy, n}};
    if (arch_init(&a, 1) == OK) {
        a.V = V;
        enum code c = gguf_tokenizer(&b, &a, files, 2, "phi-3", "fuzz");
        CHECK(c == OK || c == ERR_INPUT);
        arch_free(&a);
    }
    gguf_buffer_free(&b);
    free(copy);
    return 0;
}
