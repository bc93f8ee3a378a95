/* Any bytes as MANIFEST.json of a step. The digest is made right first, or nothing would get past it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/step.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static const char tail[] = ",\n  \"digest\": \"0000000000000000000000000000000000000000000000000000000000000000\"\n}\n";
    json_t *root;
    char hex[65], *text = malloc(n + sizeof tail);
    if (!text)
        return 0;
    memcpy(text, bytes, n);
    if (manifest_parse(text, n, "fuzz", &root) == OK)
        json_decref(root);
    memcpy(text + n, tail, sizeof tail);
    size_t size = n + sizeof tail - 1;
    sha256_of(text, size, hex);
    memcpy(text + size - 4 - 64, hex, 64);
    if (manifest_parse(text, size, "fuzz", &root) == OK)
        json_decref(root);
    free(text);
    return 0;
}
