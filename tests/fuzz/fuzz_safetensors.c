/* A whole safetensors file in memory: accepted only if its tensors tile it exactly. */
#include <stdlib.h>
#include <string.h>

#include "checkpoints/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct st_header h;
    int64_t length, end = 0;
    if (st_length(data, (int64_t)n, ST_HEADER_DEFAULT, "fuzz", &length) != OK)
        return 0;
    if (st_parse(&h, (const char *)data + 8, length, (int64_t)n, "fuzz") != OK)
        return 0;
    for (int i = 0; i < h.count; i++) {
        CHECK(h.tensors[i].begin == end && h.tensors[i].end >= end);
        end = h.tensors[i].end;
    }
    CHECK(h.data + end == (int64_t)n);
    st_free(&h);
    return 0;
}
