/* Element types and strided views: how every tensor is handed around. A view owns nothing. Strides are in elements. */
#ifndef GQAKIT_BASE_VIEW_H
#define GQAKIT_BASE_VIEW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DT_NONE, DT_F32, DT_BF16, DT_F16, DT_F64, DT_I64, DT_I32, DT_I16, DT_U16, DT_I8, DT_U8, DT_BOOL, DT_COUNT };

size_t dtype_bytes(enum dtype t);             /* 0 for DT_NONE */
const char *dtype_name(enum dtype t);         /* "f32", "bf16", ... as the command line spells them */
enum dtype dtype_parse(const char *name);     /* accepts f32 fp32 float32 bf16 bfloat16 f16 fp16 float16 ...; DT_NONE if unknown */

struct view {
    void *p; /* NULL: absent (an optional argument not given) */
    enum dtype dtype;
    int nd;
    int64_t n[4]; /* extents; n[i] == 1 for i >= nd */
    int64_t s[4]; /* strides in elements, not bytes */
};

/* Contiguous row-major views. Unused trailing extents are 1. */
struct view view_1d(void *p, enum dtype t, int64_t n0);
struct view view_2d(void *p, enum dtype t, int64_t n0, int64_t n1);
struct view view_3d(void *p, enum dtype t, int64_t n0, int64_t n1, int64_t n2);
struct view view_4d(void *p, enum dtype t, int64_t n0, int64_t n1, int64_t n2, int64_t n3);
struct view view_none(void);
/* Elements [from, from+count) along axis; bounds are CHECKed. */
struct view view_slice(struct view v, int axis, int64_t from, int64_t count);
int64_t view_count(struct view v);     /* product of extents */
int view_contiguous(struct view v);    /* 1 if row-major without gaps */
int view_same_shape(struct view a, struct view b);
static inline float *view_f32(struct view v) { return (float *)v.p; }

/* Scalar conversions. f32 -> bf16/f16 rounds to nearest even; NaN stays NaN (quiet). */
uint16_t bf16_from_f32(float x);
float f32_from_bf16(uint16_t x);
uint16_t f16_from_f32(float x);
float f32_from_f16(uint16_t x);

/* Converts n elements. src and dst must not overlap unless they are equal and of the same dtype (a copy).
 * Supported: any of f32, bf16, f16, f64 to any of them. CHECKs on others. Vectorised where the machine can. */
void convert_elements(void *dst, enum dtype dst_type, const void *src, enum dtype src_type, size_t n);
/* Number of non-finite values among n elements of a float type. */
size_t count_nonfinite(const void *src, enum dtype t, size_t n);

/* Products of dims that come from a file: returns 0 and leaves *out alone on overflow or a negative factor. */
int checked_mul(int64_t a, int64_t b, int64_t *out);
int checked_add(int64_t a, int64_t b, int64_t *out);

#ifdef __cplusplus
}
#endif
#endif
