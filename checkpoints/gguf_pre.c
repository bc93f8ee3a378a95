/* Which of llama.cpp's built-in splitters (src/llama-vocab.cpp) a byte-level tokenizer has: by the structure and the patterns of
 * tokenizer.json's pre_tokenizer. llama.cpp's own converter hashes the encoding of a test string instead, which tells apart
 * vocabularies that split alike. */
#include <string.h>

#include "gguf_tokenizer.h"

#define CASELESS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORDS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define REST " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

enum { MERGES_FIRST = 1, MERGES_IGNORED = 2 }; /* "ignore_merges" must be false, true */
static const struct { const char *pattern, *name; int merges; } PATTERNS[] = {
    {CASELESS "|" WORDS "|\\p{N}{1,3}|" REST, "llama-bpe", MERGES_IGNORED},
    {CASELESS "|" WORDS "|\\p{N}{1,3}|" REST, "dbrx", MERGES_FIRST}, /* the same split; OLMo 2 */
    {CASELESS "|" WORDS "|\\p{N}|" REST, "qwen2", 0},
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2", 0},
    {" ?[^(\\s|[.,!?\xe2\x80\xa6\xe3\x80\x82\xef\xbc\x8c\xe3\x80\x81\xe0\xa5\xa4\xdb\x94\xd8\x8c])]+", "bloom", 0},
};

/* \r, \n of a pattern may stand as the characters themselves. */
static int same_pattern(const char *pattern, const char *ours)
{
    while (*pattern && *ours) {
        if (*pattern == *ours) {
            pattern++;
            ours++;
        } else if (ours[0] == '\\' && ((ours[1] == 'r' && *pattern == '\r') || (ours[1] == 'n' && *pattern == '\n'))) {
            pattern++;
            ours += 2;
        } else {
            return 0;
        }
    }
    return !*pattern && !*ours;
}

static const char *type_of(const json_t *step)
{
    const char *type = json_string_value(json_object_get(step, "type"));
    return type ? type : "";
}

static const char *pattern_of(const json_t *step)
{
    const json_t *pattern = json_object_get(step, "pattern");
    const char *text = json_string_value(json_object_get(pattern, "Regex"));
    return !strcmp(type_of(step), "Split") && text ? text : "";
}

/* ByteLevel that splits by GPT-2's pattern itself, or only maps bytes. */
static int is_bytes(const json_t *step, int splits)
{
    const json_t *use = json_object_get(step, "use_regex");
    return !strcmp(type_of(step), "ByteLevel") && (use == NULL || json_is_true(use)) == (splits != 0);
}

static int is_digits(const json_t *step, int individual)
{
    return !strcmp(type_of(step), "Digits") && json_is_true(json_object_get(step, "individual_digits")) == (individual != 0);
}

static const char *split_name(const char *pattern, int ignore_merges)
{
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++)
        if (same_pattern(pattern, PATTERNS[i].pattern) && (!PATTERNS[i].merges || PATTERNS[i].merges == (ignore_merges ? MERGES_IGNORED : MERGES_FIRST)))
            return PATTERNS[i].name;
    return NULL;
}

const char *gguf_pre_name(const json_t *root)
{
    const json_t *pre = json_object_get(root, "pre_tokenizer"), *steps = json_object_get(pre, "pretokenizers");
    const json_t *a = pre, *b = NULL;
    size_t n = 1;
    if (!strcmp(type_of(pre), "Sequence")) {
        n = json_array_size(steps);
        a = json_array_get(steps, 0);
        b = json_array_get(steps, 1);
    }
    if (n == 1 && is_bytes(a, 1))
        return "gpt-2";
    if (n == 2 && is_bytes(b, 0))
        return split_name(pattern_of(a), json_is_true(json_object_get(json_object_get(root, "model"), "ignore_merges")));
    if (n == 2 && is_digits(a, 1) && is_bytes(b, 1))
        return "starcoder";
    if (n == 4 && !strcmp(type_of(a), "Punctuation") && is_bytes(b, 1) && is_digits(json_array_get(steps, 2), 0) &&
        !strcmp(pattern_of(json_array_get(steps, 3)), "[0-9][0-9][0-9]"))
        return "falcon";
    return NULL;
}

json_t *gguf_pre_of_class(const char *class, const char *where)
{
    static const char *const gpt2[] = {"GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast", "GPTNeoXTokenizer", ""};
    if (!strncmp(class, "Qwen2Tokenizer", 14))
        return json_pack("{s:s, s:[{s:s, s:{s:s}}, {s:s, s:b}]}", "type", "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex",
                         CASELESS "|" WORDS "|\\p{N}|" REST, "type", "ByteLevel", "use_regex", 0);
    int known = 0;
    for (size_t i = 0; i < sizeof gpt2 / sizeof *gpt2; i++)
        known |= !strcmp(class, gpt2[i]);
    if (!known)
        log_warn("%s: without tokenizer.json, text is split as by GPT-2's tokenizer, though it says %s", where, class);
    return json_pack("{s:s}", "type", "ByteLevel");
}
