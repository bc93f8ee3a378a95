/* What a result's model card takes over from its source's: the licence and language lines of README.md's front matter, the YAML
 * between two lines "---" at the top of the file that model hubs read:
 *   ---
 *   license: apache-2.0
 *   language:
 *   - en
 *   ---
 * A member is its "key:" line at column 0 and the lines below it that continue it: indented, or items of a list ("- "). Whole lines
 * are copied and no YAML is parsed; a front matter that is not closed, or holds bytes that are no text, gives nothing. */
#include <stdlib.h>
#include <string.h>

#include "form.h"

#define CARD_LIMIT ((size_t)4 << 20)
#define FRONT_LIMIT ((size_t)16 << 10) /* real ones are under 2 KB; those beyond are lists of languages */

static const char *const KEYS[] = {"license", "license_name", "license_link", "language"};
enum { N_KEYS = sizeof KEYS / sizeof *KEYS };

struct line { const char *p; size_t n; }; /* without its end: LF or CRLF */

static int line_next(const char **p, const char *end, struct line *line)
{
    if (*p >= end)
        return 0;
    const char *stop = memchr(*p, '\n', (size_t)(end - *p));
    line->p = *p;
    line->n = (size_t)((stop ? stop : end) - *p);
    *p = stop ? stop + 1 : end;
    if (line->n && line->p[line->n - 1] == '\r')
        line->n--;
    return 1;
}

static int line_is_rule(const struct line *l) { return l->n == 3 && !memcmp(l->p, "---", 3); }

static int line_is_text(const struct line *l)
{
    for (size_t i = 0; i < l->n; i++)
        if ((unsigned char)l->p[i] < ' ' && l->p[i] != '\t')
            return 0;
    return 1;
}

static int line_continues(const struct line *l) { return l->n && (*l->p == ' ' || *l->p == '\t' || (*l->p == '-' && (l->n == 1 || l->p[1] == ' '))); }

static int line_key(const struct line *l)
{
    for (int k = 0; k < N_KEYS; k++) {
        size_t n = strlen(KEYS[k]);
        if (l->n > n && !memcmp(l->p, KEYS[k], n) && l->p[n] == ':')
            return k;
    }
    return N_KEYS;
}

char *card_front_lines(const char *text, size_t n)
{
    const char *p = text, *end = text + (n < FRONT_LIMIT ? n : FRONT_LIMIT);
    struct line line;
    size_t used = 0;
    int seen[N_KEYS + 1] = {0}, copying = 0, closed = 0;
    char *out = malloc((size_t)(end - text) + 2); /* a last line may lack its end */
    if (!out)
        return NULL;
    if (n >= 3 && !memcmp(p, "\xEF\xBB\xBF", 3))
        p += 3;
    if (line_next(&p, end, &line) && line_is_rule(&line))
        while (!closed && line_next(&p, end, &line) && line_is_text(&line)) {
            closed = line_is_rule(&line);
            if (!line_continues(&line)) {
                int k = line_key(&line);
                copying = k < N_KEYS && !seen[k];
                seen[k] = 1;
            }
            if (copying && !closed) {
                memcpy(out + used, line.p, line.n);
                used += line.n;
                out[used++] = '\n';
            }
        }
    out[closed ? used : 0] = 0;
    return out;
}

char *card_inherited(struct checkpoint *source)
{
    const struct ckpt_companion *list;
    int count = ckpt_companions(source, &list);
    for (int i = 0; i < count; i++)
        if (!strcmp(list[i].name, "README.md"))
            return card_front_lines(list[i].bytes, list[i].n);
    char *path = io_is_dir(source->path) ? io_join(source->path, "README.md") : NULL, *bytes = NULL;
    size_t n = 0;
    int64_t size = path ? io_file_bytes(path) : -1;
    if (size >= 0 && size <= (int64_t)CARD_LIMIT && io_read_all(path, CARD_LIMIT, &bytes, &n) != OK)
        log_warn("%s; its licence line is not carried over", fail_text());
    char *lines = card_front_lines(bytes ? bytes : "", n);
    free(bytes);
    free(path);
    return lines;
}
