#include "token_case.h"

#include <unistd.h>

#include "harness.h"

void token_put_le(unsigned char *p, uint64_t v, int width)
{
    for (int i = 0; i < width; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

enum code token_try_open(const char *name, const struct tokens_options *o, struct tokens **t)
{
    char *path = temp_path(name);
    enum code c = tokens_open(t, path, o);
    if (c != OK)
        assert_null(*t);
    free(path);
    return c;
}

const struct tokens_options token_plain = {.eos = -1, .bos = -1};

enum code token_opens(const char *name, const struct tokens_options *o)
{
    struct tokens *t;
    enum code c = token_try_open(name, o, &t);
    tokens_close(t);
    return c;
}

void token_check_stream(const char *name, const struct tokens_options *o, const int32_t *want, int64_t n, int64_t bytes)
{
    struct tokens *t;
    int32_t got[64];
    uint8_t mask[64];
    assert_true(n <= 64);
    assert_ok(token_try_open(name, o, &t));
    assert_int_equal(tokens_count(t), n);
    assert_int_equal(tokens_bytes(t), bytes);
    assert_int_equal(strlen(tokens_sha256(t)), 64);
    for (int64_t from = 0; from <= n; from++) /* every range */
        for (int64_t k = 0; from + k <= n; k++) {
            tokens_get(t, from, k, got);
            assert_memory_equal(got, want + from, (size_t)k * 4);
        }
    tokens_get_mask(t, 0, n, mask);
    for (int64_t i = 0; i < n && !tokens_has_mask(t); i++)
        assert_int_equal(mask[i], 1);
    tokens_close(t);
}

void token_cut_file(const char *name, size_t n)
{
    char *path = temp_path(name);
    assert_int_equal(truncate(path, (off_t)n), 0);
    free(path);
}
