/* Element types and the arithmetic of strided views. Conversions are in convert.c. */
#include "base/view.h"

#include <ctype.h>
#include <string.h>

#include "base/error.h"

static const struct { const char *name; size_t bytes; const char *also; } dtypes[DT_COUNT] = {
    [DT_NONE] = {"none", 0, ""},
    [DT_F32] = {"f32", 4, "|fp32|float32|float|"},
    [DT_BF16] = {"bf16", 2, "|bfloat16|"},
    [DT_F16] = {"f16", 2, "|fp16|float16|half|"},
    [DT_F64] = {"f64", 8, "|fp64|float64|double|"},
    [DT_I64] = {"i64", 8, "|int64|long|"},
    [DT_I32] = {"i32", 4, "|int32|int|"},
    [DT_I16] = {"i16", 2, "|int16|short|"},
    [DT_U16] = {"u16", 2, "|uint16|"},
    [DT_I8] = {"i8", 1, "|int8|"},
    [DT_U8] = {"u8", 1, "|uint8|byte|"},
    [DT_BOOL] = {"bool", 1, "|boolean|"},
};

size_t dtype_bytes(enum dtype t)
{
    CHECK((unsigned)t < DT_COUNT);
    return dtypes[t].bytes;
}

const char *dtype_name(enum dtype t)
{
    CHECK((unsigned)t < DT_COUNT);
    return dtypes[t].name;
}

enum dtype dtype_parse(const char *name)
{
    char low[24], wrapped[28];
    size_t n = name ? strlen(name) : 0;
    if (n > 6 && !strncmp(name, "torch.", 6)) {
        name += 6;
        n -= 6;
    }
    if (!n || n >= sizeof low || strchr(name, '|'))
        return DT_NONE;
    for (size_t i = 0; i <= n; i++)
        low[i] = (char)tolower((unsigned char)name[i]);
    wrapped[0] = '|';
    memcpy(wrapped + 1, low, n);
    wrapped[n + 1] = '|';
    wrapped[n + 2] = 0;
    for (int t = DT_NONE + 1; t < DT_COUNT; t++)
        if (!strcmp(low, dtypes[t].name) || strstr(dtypes[t].also, wrapped))
            return (enum dtype)t;
    return DT_NONE;
}

static struct view view_make(void *p, enum dtype t, int nd, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    CHECK(n0 >= 0 && n1 >= 0 && n2 >= 0 && n3 >= 0);
    struct view v = {p, t, nd, {n0, n1, n2, n3}, {n1 * n2 * n3, n2 * n3, n3, 1}};
    return v;
}

struct view view_1d(void *p, enum dtype t, int64_t n0)
{
    struct view v = {p, t, 1, {n0, 1, 1, 1}, {1, 1, 1, 1}};
    CHECK(n0 >= 0);
    return v;
}

struct view view_2d(void *p, enum dtype t, int64_t n0, int64_t n1)
{
    struct view v = view_make(p, t, 2, n0, n1, 1, 1);
    v.s[1] = 1;
    return v;
}

struct view view_3d(void *p, enum dtype t, int64_t n0, int64_t n1, int64_t n2)
{
    return view_make(p, t, 3, n0, n1, n2, 1);
}

struct view view_4d(void *p, enum dtype t, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    return view_make(p, t, 4, n0, n1, n2, n3);
}

struct view view_none(void)
{
    struct view v = {NULL, DT_NONE, 0, {0, 0, 0, 0}, {0, 0, 0, 0}};
    return v;
}

struct view view_slice(struct view v, int axis, int64_t from, int64_t count)
{
    CHECK(axis >= 0 && axis < v.nd && from >= 0 && count >= 0 && from <= v.n[axis] - count);
    if (v.p)
        v.p = (char *)v.p + from * v.s[axis] * (int64_t)dtype_bytes(v.dtype);
    v.n[axis] = count;
    return v;
}

int64_t view_count(struct view v)
{
    return v.nd == 0 ? 0 : v.n[0] * v.n[1] * v.n[2] * v.n[3];
}

int view_contiguous(struct view v)
{
    int64_t expect = 1;
    for (int i = v.nd - 1; i >= 0; i--) {
        if (v.n[i] != 1 && v.s[i] != expect)
            return 0;
        expect *= v.n[i];
    }
    return 1;
}

int view_same_shape(struct view a, struct view b)
{
    if (a.nd != b.nd)
        return 0;
    for (int i = 0; i < a.nd; i++)
        if (a.n[i] != b.n[i])
            return 0;
    return 1;
}

int checked_mul(int64_t a, int64_t b, int64_t *out)
{
    int64_t r;
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r))
        return 0;
    *out = r;
    return 1;
}

int checked_add(int64_t a, int64_t b, int64_t *out)
{
    int64_t r;
    if (a < 0 || b < 0 || __builtin_add_overflow(a, b, &r))
        return 0;
    *out = r;
    return 1;
}
