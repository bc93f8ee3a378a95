/* A native file without a seal (its first byte odd) or with one made right for these bytes: the guard's child may die, we may not; what the
 * guard lets through is read whole. */
#include "checkpoints/checkpoint.h"
#include "checkpoints/h5.h"
#include "fuzz_files.h"

static void put_sealed(const char *path)
{
    char block[H5_USER_BLOCK], hex[33];
    int64_t bytes;
    FILE *f = fopen(path, "r+b");
    CHECK(f && h5_seal_hash(fileno(f), path, &bytes, hex) == OK);
    h5_seal_text(block, bytes, hex);
    CHECK(fwrite(block, 1, sizeof block, f) == sizeof block);
    CHECK(fclose(f) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct checkpoint *ck;
    if (n < 1 + H5_USER_BLOCK)
        return 0;
    if (bytes[0] & 1) {
        fuzz_put("m.h5", bytes + 1 + H5_USER_BLOCK, n - 1 - H5_USER_BLOCK);
    } else {
        fuzz_put("m.h5", bytes + 1, n - 1);
        put_sealed(fuzz_path("m.h5"));
    }
    enum code c = ckpt_open(&ck, fuzz_path("m.h5"), NULL);
    CHECK(c == OK || c == ERR_INPUT || c == ERR_UNSUPPORTED);
    if (c != OK)
        return 0;
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        char *block = malloc((size_t)t->bytes);
        CHECK(block);
        c = ckpt_read(ck, t, 0, t->n[0], block, DT_NONE);
        CHECK(c == OK || c == ERR_INPUT);
        free(block);
    }
    ckpt_close(ck);
    return 0;
}
