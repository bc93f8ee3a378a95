/* A llama2.c header: the first 8 bytes of the input are the file size it is to be believed against. */
#include <string.h>

#include "checkpoints/llama2c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct arch a;
    struct llama2c_layout layout;
    int64_t file_bytes;
    if (n < 8)
        return 0;
    memcpy(&file_bytes, data, 8);
    size_t head = n - 8 < LLAMA2C_HEAD ? n - 8 : LLAMA2C_HEAD;
    if (llama2c_parse(&a, &layout, data + 8, head, file_bytes, "fuzz") != OK)
        return 0;
    for (int s = 0; s < T_SLOTS; s++)
        CHECK(layout.offset[s] >= 0 && layout.offset[s] <= file_bytes);
    arch_free(&a);
    return 0;
}
