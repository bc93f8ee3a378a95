/* Any bytes as text or as JSON lines, gzip'ed or not (by their magic), in bytes. First byte: 1 is JSON lines, 2 and 3 the same through a tokenizer. */
#include "data/data.h"
#include "fuzz_files.h"

static const char json[] = "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"unk_token\": \"<unk>\", \"vocab\": {\"<unk>\": 0, \"a\": 1, \"b\": 2, \"ab\": 3},"
                           " \"merges\": [\"a b\"]}, \"normalizer\": {\"type\": \"NFC\"}}";

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct tokenizer *tokenizer = NULL;
    struct tokens *t;
    if (n == 0)
        return 0;
    int way = bytes[0] & 3;
    if (way < 2)
        CHECK(tokenizer_open(&tokenizer, "bytes") == OK);
    else
        CHECK(tokenizer_parse(&tokenizer, json, strlen(json), "fuzz") == OK);
    struct tokens_options o = {.format = way & 1 ? DATA_JSONL : DATA_TEXT, .eos = bytes[0] & 4 ? 3 : -1, .bos = -1, .tokenizer = tokenizer};
    fuzz_put("t.txt", bytes + 1, n - 1);
    enum code c = tokens_open(&t, fuzz_path("t.txt"), &o);
    CHECK(c == OK || c == ERR_INPUT || c == ERR_UNSUPPORTED);
    if (c == OK) {
        CHECK(tokens_count(t) > 0 && tokens_bytes(t) > 0);
        tokens_close(t);
    }
    tokenizer_close(tokenizer);
    return 0;
}
