/* Any bytes as a JSON object: what is accepted is written and read back the same. */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    json_t *j, *again;
    if (json_parse_object((const char *)data, n, "fuzz", &j) != OK)
        return 0;
    char *text = json_text(j, JSON_COMPACT | JSON_REAL_PRECISION(17));
    CHECK(text);
    CHECK(json_parse_object(text, strlen(text), "again", &again) == OK);
    CHECK(json_equal(j, again));
    int64_t i = 0;
    double d = 0;
    int b = 0;
    const char *s = NULL;
    enum code c = json_want_i64(j, "fuzz", "a", -5, 5, &i);
    CHECK(c == ERR_INPUT || (c == OK && i >= -5 && i <= 5));
    c = json_want_f64(j, "fuzz", "b", &d);
    c = json_want_bool(j, "fuzz", "c", &b);
    c = json_need_str(j, "fuzz", "d", &s);
    CHECK(c == ERR_INPUT || s);
    json_decref(j);
    json_decref(again);
    free(text);
    return 0;
}
