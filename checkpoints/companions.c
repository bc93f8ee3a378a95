/* Small files that travel with a model, byte for byte: tokenizers (serving tools recognise them by hash), generation
 * defaults, chat templates, licences. Kept in memory while the checkpoint is open. */
#include <stdlib.h>
#include <string.h>

#include "form.h"

/* The largest tokenizer.json in use are around 30 MB. */
#define COMPANION_LIMIT ((size_t)128 << 20)

static const char *const NAMES[] = {"tokenizer.json",         "tokenizer_config.json",   "tokenizer.model",
                                    "vocab.json",             "merges.txt",              "special_tokens_map.json",
                                    "added_tokens.json",      "generation_config.json",  "vocab.txt"};
static const char *const PREFIXES[] = {"chat_template", "LICENSE"};

int companion_is_known(const char *name)
{
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (!strcmp(name, NAMES[i]))
            return 1;
    for (size_t i = 0; i < sizeof PREFIXES / sizeof *PREFIXES; i++)
        if (!strncmp(name, PREFIXES[i], strlen(PREFIXES[i])))
            return 1;
    return 0;
}

enum code form_add_companion(struct ckpt_companion **list, int *n, const char *name, const void *bytes, size_t size)
{
    char *copy = malloc(size + 1), *key = strdup(name);
    int i = 0;
    while (i < *n && strcmp((*list)[i].name, name) != 0)
        i++;
    struct ckpt_companion *grown = i < *n ? *list : realloc(*list, (size_t)(*n + 1) * sizeof *grown);
    if (grown)
        *list = grown;
    if (!copy || !key || !grown) {
        free(copy);
        free(key);
        return fail(ERR_MEMORY, "%s: out of memory for %zu bytes", name, size);
    }
    if (size)
        memcpy(copy, bytes, size);
    copy[size] = 0;
    if (i < *n) {
        free((char *)grown[i].name);
        free((char *)grown[i].bytes);
    } else {
        ++*n;
    }
    grown[i] = (struct ckpt_companion){key, copy, size};
    return OK;
}

void form_free_companions(struct ckpt_companion *list, int n)
{
    for (int i = 0; i < n; i++) {
        free((char *)list[i].name);
        free((char *)list[i].bytes);
    }
    free(list);
}

static enum code companion_load(struct checkpoint *ck, const char *dir, const char *name)
{
    char *path = io_join(dir, name), *bytes = NULL;
    size_t n = 0;
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory", dir);
    enum code c = OK;
    if (io_file_bytes(path) >= 0) {
        c = io_read_all(path, COMPANION_LIMIT, &bytes, &n);
        if (c == OK)
            c = form_add_companion(&ck->companions, &ck->n_companions, name, bytes, n);
        if (c == OK)
            c = form_add_fileref(ck, name);
    }
    free(bytes);
    free(path);
    return c;
}

enum code companions_from_dir(struct checkpoint *ck, const char *dir)
{
    char **names;
    int n;
    TRY(io_list(dir, &names, &n));
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++)
        if (companion_is_known(names[i]))
            c = companion_load(ck, dir, names[i]);
    io_names_free(names, n);
    return c;
}
