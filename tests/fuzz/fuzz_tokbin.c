/* Any bytes as an llm.c token file: header, scan of the ids, reads of ranges. */
#include "data/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct tokens t = {.path = (char[]){"fuzz"}, .map = {bytes, n}};
    int32_t ids[64];
    if (llmc_read_header(&t, bytes, n, "fuzz") != OK)
        return 0;
    for (int64_t V = 1; V < (int64_t)1 << 32; V *= 65536) {
        enum code c = tokens_check_ids(&t, V);
        (void)c;
    }
    for (int64_t from = 0; from < t.n; from += 64)
        tokens_get(&t, from, t.n - from < 64 ? t.n - from : 64, ids);
    return 0;
}
