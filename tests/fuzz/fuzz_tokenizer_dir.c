/* A tokenizer's folder: vocab.json, 0x00, merges.txt, 0x00, tokenizer_config.json, 0x00, text. Also read as llama.cpp's form is made of it. */
#include "checkpoints/gguf_tokenizer.h"
#include "data/data.h"
#include "fuzz_files.h"

static void gguf(const uint8_t *const *part, const size_t *size)
{
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json"};
    struct ckpt_companion files[3];
    struct arch a;
    struct gguf_buffer b = {0};
    for (int i = 0; i < 3; i++) {
        char *copy = malloc(size[i] + 1); /* companions end with a NUL */
        CHECK(copy);
        memcpy(copy, part[i], size[i]);
        copy[size[i]] = 0;
        files[i] = (struct ckpt_companion){names[i], copy, size[i]};
    }
    CHECK(arch_init(&a, 1) == OK);
    a.V = 300;
    enum code c = gguf_tokenizer(&b, &a, files, 3, "m", "fuzz");
    CHECK(c == OK || c == ERR_INPUT);
    arch_free(&a);
    gguf_buffer_free(&b);
    for (int i = 0; i < 3; i++)
        free((char *)(uintptr_t)files[i].bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json"};
    const uint8_t *part[3];
    size_t size[3];
    struct tokenizer *t;
    for (int i = 0; i < 3; i++) {
        size[i] = fuzz_part(&bytes, &n, &part[i]);
        fuzz_put(names[i], part[i], size[i]);
    }
    gguf(part, size);
    if (tokenizer_open(&t, fuzz_dir()) != OK)
        return 0;
    int32_t *ids = NULL;
    int64_t count = 0;
    char *back = NULL;
    size_t back_n;
    CHECK(tokenizer_bos(t) < tokenizer_vocab(t) && tokenizer_eos(t) < tokenizer_vocab(t));
    if (tokenizer_encode(t, (const char *)bytes, n < 256 ? n : 256, 1, &ids, &count) == OK && tokenizer_decode(t, ids, count, &back, &back_n) != OK)
        back = NULL;
    for (int64_t i = 0; i < count; i++)
        CHECK(ids[i] >= 0 && ids[i] < tokenizer_vocab(t));
    free(back);
    free(ids);
    tokenizer_close(t);
    return 0;
}
