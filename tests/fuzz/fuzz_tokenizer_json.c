/* Any bytes as a tokenizer.json, followed (after a NUL) by a text to encode and decode with it. */
#include <stdlib.h>
#include <string.h>
#include "data/data.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    const char *json = (const char *)bytes, *text = "Hello  w\xC3\xB6rld, don't 1234 <s>\n e\xCC\x81 \xE4\xB8\xAD";
    const uint8_t *nul = n > 0 ? memchr(bytes, 0, n) : NULL;
    size_t json_n = nul != NULL ? (size_t)(nul - bytes) : n, text_n = strlen(text);
    struct tokenizer *t;
    if (tokenizer_parse(&t, json, json_n, "fuzz") != OK)
        return 0;
    if (nul != NULL) {
        text = (const char *)nul + 1;
        text_n = n - json_n - 1 < 256 ? n - json_n - 1 : 256;
    }
    for (int specials = 0; specials < 2; specials++) {
        int32_t *ids = NULL;
        int64_t count = 0;
        char *back = NULL;
        size_t back_n;
        if (tokenizer_encode(t, text, text_n, specials, &ids, &count) == OK && tokenizer_decode(t, ids, count, &back, &back_n) != OK)
            back = NULL; /* added tokens may share an id with a hole */
        free(back);
        free(ids);
    }
    tokenizer_close(t);
    return 0;
}
