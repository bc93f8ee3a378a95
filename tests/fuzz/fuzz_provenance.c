/* Any bytes as PROVENANCE.json of a result, beside one file of 5 bytes. */
#include "checkpoints/provenance.h"
#include "fuzz_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    int checked = -1;
    fuzz_put("f", (const uint8_t *)"hello", 5);
    fuzz_put("PROVENANCE.json", bytes, n);
    enum code c = provenance_verify(fuzz_dir(), &checked);
    CHECK(c == OK || c == ERR_INPUT);
    CHECK(checked >= 0);
    return 0;
}
