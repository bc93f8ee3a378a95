/* Any bytes as a YAML config: parse, dump as JSON and YAML, bind to a small table. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct bound { int64_t i; double f; const char *s; int b, c; struct config_list l; const struct config_node *m; };

static const struct config_field table[] = {
    {"a.i", CONFIG_INT, offsetof(struct bound, i), "1", NULL, "i|int", "", 0, 100},
    {"a.f", CONFIG_FLOAT, offsetof(struct bound, f), "1", NULL, NULL, "", 0, 0},
    {"s", CONFIG_STR, offsetof(struct bound, s), "x", NULL, NULL, "", 0, 0},
    {"b", CONFIG_BOOL, offsetof(struct bound, b), "no", NULL, NULL, "", 0, 0},
    {"c", CONFIG_CHOICE, offsetof(struct bound, c), "x", "x|y", NULL, "", 0, 0},
    {"l", CONFIG_INTS, offsetof(struct bound, l), "[1]", NULL, NULL, "", 0, 0},
    {"m", CONFIG_MAP, offsetof(struct bound, m), NULL, NULL, NULL, "", 0, 0},
};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct config *c;
    struct bound bound;
    if (config_parse(&c, (const char *)bytes, n, "fuzz") != OK)
        return 0;
    json_t *json = config_to_json(config_root(c));
    char *yaml = json ? config_json_to_yaml(json) : NULL;
    memset(&bound, 0, sizeof bound);
    enum code code = config_bind(c, config_root(c), table, (int)(sizeof table / sizeof table[0]), &bound);
    (void)code;
    free(yaml);
    json_decref(json);
    config_free(c);
    return 0;
}
