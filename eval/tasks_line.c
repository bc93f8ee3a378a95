/* One line of a task file: which kind it is, and its texts. Nothing here looks at the model. */
#include "tasks.h"

#include <stdlib.h>
#include <string.h>

const char *task_kind_name(enum task_kind kind)
{
    static const char *const names[] = { "multiple choice", "minimal pair", "exact match" };
    return names[kind];
}

void task_item_free(struct task_item *item)
{
    json_decref(item->line);
    free(item->text);
    *item = (struct task_item){ 0 };
}

/* The one key of `names` that the line has, or NULL; two of them would leave it open which is meant. */
static enum code only_key(const json_t *line, const char *where, const char *const *names, const char **key)
{
    *key = NULL;
    for (; *names; names++) {
        if (!json_object_get(line, *names))
            continue;
        if (*key)
            return fail(ERR_INPUT, "%s: expected one of \"%s\" and \"%s\", found both: put all of the text into one", where, *key, *names);
        *key = *names;
    }
    return OK;
}

static enum code add_text(struct task_item *item, const json_t *v, const char *where, const char *key)
{
    const char *text = json_string_value(v);
    if (!text)
        return fail(ERR_INPUT, "%s: \"%s\": expected a string as text %d", where, key, item->n);
    if (!*text)
        return fail(ERR_INPUT, "%s: \"%s\": text %d is empty, so there is nothing to score", where, key, item->n);
    item->text[item->n++] = text;
    return OK;
}

/* A string or a list of `least` strings and more. */
static enum code add_texts(struct task_item *item, const char *where, const char *key, size_t least)
{
    const json_t *v = json_object_get(item->line, key);
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n < least || n > TASK_MOST_TEXTS || (least > 1 && !json_is_array(v)))
        return fail(ERR_INPUT, "%s: \"%s\": expected a list of %zu to %d strings", where, key, least, TASK_MOST_TEXTS);
    item->text = calloc(n, sizeof *item->text);
    if (!item->text)
        return fail(ERR_MEMORY, "%s: out of memory for %zu texts", where, n);
    for (size_t i = 0; i < n; i++)
        TRY(add_text(item, json_is_array(v) ? json_array_get(v, i) : v, where, key));
    return OK;
}

static enum code parse_pair(struct task_item *item, const char *where)
{
    static const char *const keys[] = { "sentence_good", "sentence_bad" };
    item->kind = TASK_PAIR;
    item->context = "";
    item->text = calloc(2, sizeof *item->text);
    if (!item->text)
        return fail(ERR_MEMORY, "%s: out of memory", where);
    for (int i = 0; i < 2; i++)
        TRY(add_text(item, json_object_get(item->line, keys[i]), where, keys[i]));
    return OK;
}

static enum code parse_choice(struct task_item *item, const char *where)
{
    static const char *const golds[] = { "gold", "answer", "label", NULL };
    const char *key;
    item->kind = TASK_CHOICE;
    TRY(add_texts(item, where, "choices", 2));
    TRY(only_key(item->line, where, golds, &key));
    if (!key)
        return fail(ERR_INPUT, "%s: expected \"gold\", \"answer\" or \"label\" beside \"choices\": the index of the right choice, from 0, or its text", where);
    const json_t *gold = json_object_get(item->line, key);
    if (json_is_integer(gold)) {
        json_int_t i = json_integer_value(gold);
        if (i < 0 || i >= item->n)
            return fail(ERR_INPUT, "%s: \"%s\": expected an index from 0 to %d, found %lld", where, key, item->n - 1, (long long)i);
        item->gold = (int)i;
        return OK;
    }
    for (int i = 0; json_is_string(gold) && i < item->n; i++)
        if (!strcmp(item->text[i], json_string_value(gold))) {
            item->gold = i;
            return OK;
        }
    return fail(ERR_INPUT, "%s: \"%s\": expected the index of the right choice, from 0 to %d, or the very text of one%s%.60s%s", where, key, item->n - 1,
                json_is_string(gold) ? ", found \"" : "", json_is_string(gold) ? json_string_value(gold) : "", json_is_string(gold) ? "\"" : "");
}

static enum code parse_match(struct task_item *item, const char *where)
{
    static const char *const answers[] = { "answer", "target", "gold", NULL };
    const char *key;
    item->kind = TASK_MATCH;
    TRY(only_key(item->line, where, answers, &key));
    if (!key)
        return fail(ERR_INPUT, "%s: expected \"choices\", or \"answer\" or \"target\" with the text to match", where);
    TRY(add_texts(item, where, key, 1));
    for (int i = 0; i < item->n; i++) {
        size_t blank = strspn(item->text[i], " \t\r\n");
        if (!item->text[i][blank])
            return fail(ERR_INPUT, "%s: \"%s\": text %d is only white space", where, key, i);
        const char *newline = strchr(item->text[i] + blank, '\n');
        if (newline && newline[strspn(newline, " \t\r\n")])
            return fail(ERR_INPUT, "%s: \"%s\": text %d has several lines, but decoding ends at a newline", where, key, i);
    }
    return OK;
}

static enum code parse(struct task_item *item, const char *where)
{
    static const char *const contexts[] = { "query", "question", "context", "prompt", NULL };
    if (json_object_get(item->line, "sentence_good") || json_object_get(item->line, "sentence_bad"))
        return parse_pair(item, where);
    const char *key;
    TRY(only_key(item->line, where, contexts, &key));
    if (!key)
        return fail(ERR_INPUT, "%s: expected \"query\", \"question\", \"context\" or \"prompt\" with a text, or \"sentence_good\" and \"sentence_bad\"", where);
    item->context = json_string_value(json_object_get(item->line, key));
    if (!item->context)
        return fail(ERR_INPUT, "%s: \"%s\": expected a string", where, key);
    return json_object_get(item->line, "choices") ? parse_choice(item, where) : parse_match(item, where);
}

enum code task_line_parse(struct task_item *item, const char *bytes, size_t n, const char *where)
{
    *item = (struct task_item){ 0 };
    TRY(json_parse_object(bytes, n, where, &item->line));
    enum code c = parse(item, where);
    if (c != OK)
        task_item_free(item);
    return c;
}
