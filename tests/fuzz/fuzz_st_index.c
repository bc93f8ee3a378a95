/* model.safetensors.index.json: no accepted file name leaves the directory. */
#include "checkpoints/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct st_index x;
    if (st_index_parse(&x, (const char *)data, n, "fuzz") != OK)
        return 0;
    for (int i = 0; i < x.n_files; i++)
        CHECK(io_name_is_safe(x.files[i]));
    for (int i = 0; i < x.count; i++)
        CHECK(st_index_find(&x, x.entries[i].tensor) == &x.entries[i]);
    st_index_free(&x);
    return 0;
}
