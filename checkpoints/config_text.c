/* Editing config.json as text: everything we do not mean to change keeps its bytes (key order, spelling of numbers,
 * indentation). The text has been parsed before, so this scanner may trust its syntax. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "family.h"

struct member { const char *gap, *key, *value, *end; }; /* gap: first byte after '{' or ','; key: its opening quote */

static const char *skip_space(const char *p) { return p + strspn(p, " \t\r\n"); }

static const char *skip_string(const char *p) /* from the opening quote to behind the closing one */
{
    for (p++; *p && *p != '"'; p++)
        if (*p == '\\' && p[1])
            p++;
    return *p ? p + 1 : p;
}

static const char *skip_value(const char *p)
{
    int depth = 0;
    for (; *p; p++) {
        if (*p == '"') {
            p = skip_string(p) - 1;
            continue;
        }
        if (*p == '{' || *p == '[')
            depth++;
        else if (depth && (*p == '}' || *p == ']'))
            depth--;
        else if (!depth && (*p == ',' || *p == '}'))
            break;
    }
    while (strchr(" \t\r\n", p[-1]))
        p--;
    return p;
}

/* The member at `gap`; 0 at the end of the object. */
static int member_at(const char *gap, struct member *m)
{
    m->gap = gap;
    m->key = skip_space(gap);
    if (*m->key != '"')
        return 0;
    const char *p = skip_space(skip_string(m->key));
    if (*p != ':')
        return 0;
    m->value = skip_space(p + 1);
    m->end = skip_value(m->value);
    return 1;
}

static int member_is(const struct member *m, const char *key)
{
    size_t n = strlen(key);
    return !strncmp(m->key + 1, key, n) && m->key[n + 1] == '"';
}

enum code config_text_set(char **text, const char *key, const char *value, const char *after)
{
    struct member m, anchor = {0};
    char *out = NULL;
    const char *gap = skip_space(*text) + 1;
    for (; member_at(gap, &m); gap = m.end + strcspn(m.end, ",}") + 1) {
        if (member_is(&m, key)) {
            if (asprintf(&out, "%.*s%s%s", (int)(m.value - *text), *text, value, m.end) < 0)
                out = NULL;
            break;
        }
        if (!anchor.key || !member_is(&anchor, after))
            anchor = m; /* the wanted one, or else the last */
        if (*skip_space(m.end) != ',')
            break;
    }
    if (!out && anchor.key &&
        asprintf(&out, "%.*s,%.*s\"%s\": %s%s", (int)(anchor.end - *text), *text, (int)(anchor.key - anchor.gap), anchor.gap, key,
                 value, anchor.end) < 0)
        out = NULL;
    if (!out)
        return fail(ERR_MEMORY, "config.json: out of memory while setting \"%s\"", key);
    free(*text);
    *text = out;
    return OK;
}
