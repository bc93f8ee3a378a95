/* Any bytes as a Megatron index. The first byte is the size of the .bin in units of 8 bytes. */
#include <stdlib.h>
#include "data/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    if (n == 0)
        return 0;
    size_t bin_bytes = (size_t)bytes[0] * 8;
    unsigned char *bin = calloc(1, bin_bytes + 1); /* on the heap, so that reads beyond it are seen */
    struct tokens t = {.path = (char[]){"fuzz"}, .map = {bin, bin_bytes}};
    int32_t ids[64];
    if (bin != NULL && megatron_read_index(&t, bytes + 1, n - 1, "fuzz", (int64_t)bin_bytes) == OK) {
        enum code c = tokens_check_ids(&t, 1);
        (void)c;
        for (int64_t from = 0; from < t.n && from < 100000; from += 64)
            tokens_get(&t, from, t.n - from < 64 ? t.n - from : 64, ids);
    }
    free(t.starts);
    free(bin);
    return 0;
}
