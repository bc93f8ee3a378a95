/* The older directory form: vocab.json and merges.txt (or vocab.bpe), as GPT-2 and Qwen2 came. It says nothing about how text
 * is cut, so GPT-2's rules are taken, or Qwen2's when tokenizer_config.json names that class. From the files the JSON of a
 * tokenizer.json is put together and read like one. tokenizer_config.json also names bos and eos, for both forms. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

enum { FILE_LIMIT = 256 << 20 };

static const char qwen2_parts[] =
    "{\"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\","
    "\"pattern\": {\"Regex\": \"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\", \"invert\": false},"
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]}, \"decoder\": {\"type\": \"ByteLevel\"}}";
static const char gpt2_parts[] = "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true},"
                                 "\"decoder\": {\"type\": \"ByteLevel\"}}";

/* Lines "a b"; a first line "#version" is a comment. Returns an array of strings. */
static enum code read_merges(const char *path, json_t *merges)
{
    char *text;
    size_t n;
    enum code c = io_read_all(path, FILE_LIMIT, &text, &n);
    if (c != OK)
        return c;
    for (size_t i = 0, line = 1; c == OK && i < n; line++) {
        const char *end = memchr(text + i, '\n', n - i);
        size_t length = end != NULL ? (size_t)(end - (text + i)) : n - i, kept = length;
        while (kept > 0 && text[i + kept - 1] == '\r')
            kept--;
        int comment = line == 1 && kept >= 8 && memcmp(text + i, "#version", 8) == 0;
        if (kept > 0 && !comment && json_array_append_new(merges, json_stringn(text + i, kept)) != 0)
            c = fail(ERR_INPUT, "%s:%zu: not valid UTF-8", path, line);
        i += length + 1;
    }
    free(text);
    return c;
}

/* {"151643": {"content": ..., "special": true, ...}} -> added_tokens */
static void add_config_tokens(json_t *added, const json_t *config)
{
    const char *key;
    json_t *value;
    json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, value) {
        json_t *token = json_deep_copy(value);
        json_object_set_new(token, "id", json_integer(strtoll(key, NULL, 10)));
        json_array_append_new(added, token);
    }
}

/* GPT-2's vocabulary already holds its one special token. */
static void add_endoftext(json_t *added, const json_t *vocab)
{
    json_t *id = json_object_get(vocab, "<|endoftext|>");
    if (json_array_size(added) == 0 && id != NULL)
        json_array_append_new(added, json_pack("{s:O, s:s, s:b, s:b}", "id", id, "content", "<|endoftext|>",
                                               "special", 1, "normalized", 0));
}

static enum code read_config(const char *dir, json_t **config)
{
    char *path = io_join(dir, "tokenizer_config.json");
    *config = NULL;
    enum code c = path == NULL ? fail(ERR_MEMORY, "no memory") : io_exists(path) ? json_read_file(path, FILE_LIMIT, config) : OK;
    free(path);
    return c;
}

static enum code read_parts(const char *dir, json_t *model, json_t *added, json_t **parts)
{
    json_t *config = NULL, *vocab = NULL, *merges = json_array();
    char *vocab_path = io_join(dir, "vocab.json"), *merges_path = io_join(dir, "merges.txt");
    enum code c;
    if (merges_path != NULL && !io_exists(merges_path)) {
        free(merges_path);
        merges_path = io_join(dir, "vocab.bpe");
    }
    if (vocab_path == NULL || merges_path == NULL)
        c = fail(ERR_MEMORY, "no memory");
    else
        c = read_config(dir, &config);
    if (c == OK)
        c = json_read_file(vocab_path, FILE_LIMIT, &vocab);
    if (c == OK)
        c = read_merges(merges_path, merges);
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    int qwen2 = class != NULL && strncmp(class, "Qwen2Tokenizer", 14) == 0;
    if (c == OK)
        c = json_parse_object(qwen2 ? qwen2_parts : gpt2_parts, strlen(qwen2 ? qwen2_parts : gpt2_parts), "built-in parts", parts);
    if (c == OK) {
        add_config_tokens(added, config);
        add_endoftext(added, vocab);
    }
    json_object_set_new(model, "type", json_string("BPE"));
    json_object_set_new(model, "vocab", vocab);
    json_object_set_new(model, "merges", merges);
    json_decref(config);
    free(vocab_path);
    free(merges_path);
    return c;
}

static enum code hash_files(const char *dir, char hex[65])
{
    static const char *const names[] = {"vocab.json", "merges.txt", "vocab.bpe", "tokenizer_config.json"};
    struct sha256 *h = sha256_begin();
    enum code c = h != NULL ? OK : fail(ERR_MEMORY, "no memory for a hash");
    for (int i = 0; c == OK && i < 4; i++) {
        char *path = io_join(dir, names[i]), one[65];
        c = path == NULL ? fail(ERR_MEMORY, "no memory") : OK;
        if (c == OK && io_exists(path)) {
            c = sha256_file(path, one);
            if (c == OK)
                sha256_add(h, one, 64);
        }
        free(path);
    }
    if (h != NULL)
        sha256_end(h, hex);
    return c;
}

enum code tokenizer_read_directory(struct tokenizer *t, const char *dir)
{
    json_t *model = json_object(), *added = json_array(), *parts = NULL;
    enum code c = read_parts(dir, model, added, &parts);
    if (c == OK) {
        json_object_set(parts, "model", model);
        json_object_set(parts, "added_tokens", added);
        c = tokenizer_read_json(t, parts, dir);
    }
    json_decref(parts);
    json_decref(model);
    json_decref(added);
    return c == OK ? hash_files(dir, t->sha256) : c;
}

/* "eos_token": text | {"content": text} | null. Absent leaves *id alone; null makes it -1. */
static void read_name(const struct tokenizer *t, const json_t *config, const char *key, int *id)
{
    const json_t *node = json_object_get(config, key);
    if (node == NULL)
        return;
    const json_t *text = json_is_object(node) ? json_object_get(node, "content") : node;
    *id = json_is_string(text) ? tokenizer_id(t, json_string_value(text), json_string_length(text)) : -1;
}

enum code tokenizer_read_names(struct tokenizer *t, const char *dir)
{
    json_t *config;
    TRY(read_config(dir, &config));
    read_name(t, config, "bos_token", &t->bos);
    read_name(t, config, "eos_token", &t->eos);
    json_decref(config);
    return OK;
}
