/* Which ids end a text: "eos_token_id", a number or a list, of generation_config.json, else of config.json, as transformers'
 * generate() reads them. A chat model has several: the end of a text, the end of a turn. */
#include "eval.h"

#include <string.h>

/* 1 when the file says anything about it (null: nothing ends a text). */
static int stops_read(struct stops *s, const char *bytes, size_t n)
{
    json_t *config = json_loadb(bytes, n, 0, NULL), *v = json_object_get(config, "eos_token_id");
    size_t count = json_is_array(v) ? json_array_size(v) : 1;
    for (size_t i = 0; v && i < count && s->n < STOPS_MAX; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) <= INT32_MAX)
            s->id[s->n++] = (int32_t)json_integer_value(id);
    }
    int said = v != NULL;
    json_decref(config);
    return said;
}

void stops_of(struct stops *s, struct checkpoint *ck)
{
    const struct ckpt_companion *list;
    const struct arch *a = ckpt_arch(ck);
    int n = ckpt_companions(ck, &list);
    s->n = 0;
    for (int i = 0; i < n; i++)
        if (!strcmp(list[i].name, "generation_config.json") && stops_read(s, list[i].bytes, list[i].n))
            return;
    if ((!a->source_config || !stops_read(s, a->source_config, strlen(a->source_config))) && a->eos >= 0)
        s->id[s->n++] = a->eos;
}

int stops_has(const struct stops *s, int32_t id)
{
    for (int i = 0; i < s->n; i++)
        if (s->id[i] == id)
            return 1;
    return 0;
}
