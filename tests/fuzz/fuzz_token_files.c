/* A token file with its sidecar and its mask as a run opens them: FILE.json, 0x00, FILE.mask, 0x00, FILE (llm.c or headerless). */
#include "data/data.h"
#include "fuzz_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    const uint8_t *sidecar, *mask;
    size_t sidecar_n = fuzz_part(&bytes, &n, &sidecar), mask_n = fuzz_part(&bytes, &n, &mask);
    struct tokens_options o = {.format = DATA_AUTO, .V = 65537, .eos = -1, .bos = -1};
    struct tokens *t;
    int32_t ids[64];
    uint8_t learn[64];
    fuzz_put("t.bin.json", sidecar, sidecar_n);
    if (mask_n)
        fuzz_put("t.bin.mask", mask, mask_n);
    else
        unlink(fuzz_path("t.bin.mask"));
    fuzz_put("t.bin", bytes, n);
    enum code c = tokens_open(&t, fuzz_path("t.bin"), &o);
    CHECK(c == OK || c == ERR_INPUT || c == ERR_UNSUPPORTED || c == ERR_USAGE); /* ERR_USAGE: a compressed text, without a tokenizer */
    if (c != OK)
        return 0;
    CHECK(tokens_bytes(t) >= -1 && tokens_count(t) >= 0);
    for (int64_t at = 0; at < tokens_count(t); at += 64) {
        int64_t count = tokens_count(t) - at < 64 ? tokens_count(t) - at : 64;
        tokens_get(t, at, count, ids);
        tokens_get_mask(t, at, count, learn);
        for (int64_t i = 0; i < count; i++)
            CHECK(ids[i] >= 0 && ids[i] < o.V && learn[i] <= 1);
    }
    CHECK(strlen(tokens_sha256(t)) == 64);
    tokens_close(t);
    return 0;
}
