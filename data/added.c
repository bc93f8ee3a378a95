/* Added tokens: strings that are cut out of the text before anything else looks at it. Of all that match, the leftmost counts,
 * of those the longest; what a match covers is gone even when the match is then dropped (single_word, or a special token that
 * is to be plain text). lstrip and rstrip take the white space beside a match. There are few and they start with few
 * different bytes, so candidates are found by a table over the first byte. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

static int token_before(const void *x, const void *y)
{
    const struct added_token *a = x, *b = y;
    if (a->normalized != b->normalized)
        return a->normalized - b->normalized;
    if (a->content[0] != b->content[0])
        return (unsigned char)a->content[0] - (unsigned char)b->content[0];
    if (a->n != b->n)
        return a->n > b->n ? -1 : 1;
    int same = memcmp(a->content, b->content, a->n);
    return same != 0 ? same : a->id - b->id;
}

void added_index(struct added_tokens *a)
{
    memset(a->first, -1, sizeof a->first);
    if (a->n > 0)
        qsort(a->v, (size_t)a->n, sizeof *a->v, token_before);
    for (int i = a->n - 1; i >= 0; i--)
        if (a->v[i].n > 0)
            a->first[a->v[i].normalized][(unsigned char)a->v[i].content[0]] = i;
}

static int match_at(const struct added_tokens *a, int normalized, const char *p, size_t left)
{
    int i = a->first[normalized][(unsigned char)*p];
    for (; i >= 0 && i < a->n && a->v[i].normalized == normalized && a->v[i].content[0] == *p; i++)
        if (a->v[i].n > 0 && a->v[i].n <= left && memcmp(p, a->v[i].content, a->v[i].n) == 0)
            return i;
    return -1;
}

static int stands_alone(const char *text, size_t n, size_t start, size_t end)
{
    size_t length;
    if (start > 0 && char_is_word(utf8_read(text + utf8_back(text, start), &length)))
        return 0;
    return end == n || !char_is_word(utf8_read(text + end, &length));
}

int added_find(const struct added_tokens *a, int normalized, int skip_special, const char *text, size_t n, size_t *at, size_t floor,
               size_t *start, size_t *end)
{
    while (*at < n) {
        int i = match_at(a, normalized, text + *at, n - *at);
        if (i < 0) {
            ++*at;
            continue;
        }
        const struct added_token *t = &a->v[i];
        *start = *at;
        *end = *at + t->n;
        *at = *end;
        if ((skip_special && t->special) || (t->single_word && !stands_alone(text, n, *start, *end)))
            continue;
        size_t length, back;
        while (t->lstrip && *start > floor && char_is_space(utf8_read(text + (back = utf8_back(text, *start)), &length)))
            *start = back;
        while (t->rstrip && *end < n && char_is_space(utf8_read(text + *end, &length)))
            *end += length;
        return i;
    }
    return -1;
}

void added_free(struct added_tokens *a)
{
    for (int i = 0; i < a->n; i++) {
        free(a->v[i].content);
        free(a->v[i].written);
    }
    free(a->v);
    *a = (struct added_tokens){0};
}
