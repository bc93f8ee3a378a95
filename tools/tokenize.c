/* tokenize TOKENIZER [plain] < STRINGS: one JSON string per line in, one line of ids out (tools/compare-tokenizers drives it);
 * plain: special tokens are text, nothing is added, and a tab and what the ids decode to, as a JSON string, follow.
 * tokenize TOKENIZER time FILE: tokenises the file and prints MB/s. */
#include <stdlib.h>
#include <string.h>
#include "data/data.h"

static enum code print_decoded(const struct tokenizer *t, const int32_t *ids, int64_t n)
{
    char *text = NULL;
    size_t bytes = 0;
    TRY(tokenizer_decode(t, ids, n, &text, &bytes));
    json_t *j = json_stringn(text, bytes);
    char *dumped = j != NULL ? json_text(j, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    printf("\t%s", dumped != NULL ? dumped : "null"); /* null: the bytes are no UTF-8 */
    free(dumped);
    json_decref(j);
    free(text);
    return OK;
}

static enum code tokenize_lines(const struct tokenizer *t, int specials)
{
    char *line = NULL;
    size_t capacity = 0;
    enum code c = OK;
    for (ssize_t n; c == OK && (n = getline(&line, &capacity, stdin)) > 0;) {
        json_error_t error;
        json_t *text = json_loadb(line, (size_t)n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        int32_t *ids = NULL;
        int64_t count = 0;
        if (!json_is_string(text)) {
            c = fail(ERR_INPUT, "stdin: expected a JSON string: %s", error.text);
        } else {
            c = tokenizer_encode(t, json_string_value(text), json_string_length(text), specials, &ids, &count);
            for (int64_t i = 0; c == OK && i < count; i++)
                printf(i > 0 ? " %d" : "%d", ids[i]);
            if (c == OK && !specials)
                c = print_decoded(t, ids, count);
            putchar('\n');
        }
        free(ids);
        json_decref(text);
    }
    free(line);
    return c;
}

static enum code tokenize_timed(const struct tokenizer *t, const char *path)
{
    struct io_map m;
    TRY(io_map_open(path, &m));
    int32_t *ids = NULL;
    int64_t count = 0;
    double started = host_seconds();
    enum code c = tokenizer_encode(t, (const char *)m.p, m.n, 0, &ids, &count);
    double seconds = host_seconds() - started;
    if (c == OK)
        printf("%s: %zu bytes, %lld tokens, %.2f MB/s\n", path, m.n, (long long)count, (double)m.n / seconds / 1e6);
    free(ids);
    io_map_close(&m);
    return c;
}

int main(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    if (argc < 2 || (argc == 4 && strcmp(argv[2], "time") != 0) || argc > 4)
        return fail_exit("tokenize", fail(ERR_USAGE, "tokenize TOKENIZER [plain] < STRINGS | tokenize TOKENIZER time FILE"));
    enum code c = tokenizer_open(&t, argv[1]);
    if (c == OK)
        c = argc == 4 ? tokenize_timed(t, argv[3]) : tokenize_lines(t, argc == 2);
    tokenizer_close(t);
    return fail_exit("tokenize", c);
}
