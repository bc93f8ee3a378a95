/* Dense products by cuBLASLt (no kernels of our own here): f32 by f32 in full f32 (no TF32), bf16 by bf16 with f32 accumulation.
 * The translation from row-major views is matmul_layout.h.
 *
 * What the library chose for a product is kept in a table of the device, so that a product seen before costs a look-up: no question
 * to the heuristic, no allocation, and always the same algorithm. Its choice depends only on the key (shape, strides, types,
 * alignment, beta, bias), never on timing, and schemes that add partial sums in the output's type or in no fixed order are not
 * allowed: same inputs, same bits.
 *
 * The bias is the library's epilogue for f32 outputs, a pass of our own (bias_add) for bf16 ones, whose epilogue wants a bf16 bias. */
#include "device.cuh"

#include <stdlib.h>
#include <string.h>

#include "blas.cuh"
#include "matmul_layout.h"

#define PLANS 1024 /* a training step has about 20 products, a generation about 10 per batch size */

namespace CUDA_NS {

struct plan_key {
    struct matmul_layout layout;
    int in_type, out_type, bias, beta; /* beta: whether D is read */
    int align_a, align_b, align_d;     /* bytes, a power of two up to 256 */
    int none;                          /* no padding: keys are compared as bytes */
};

struct plan {
    int used;
    struct plan_key key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t A, B, D;
    cublasLtMatmulAlgo_t algo;
    size_t work_bytes;
};

} // namespace CUDA_NS

struct matmul_state {
    const struct blas *blas;
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    int n_plans;
    CUDA_NS::plan plans[PLANS];
    CUDA_NS::plan extra; /* for products beyond the table */
};

namespace CUDA_NS {

static enum code blas_result(const struct matmul_state *s, const char *what, cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? OK : fail(ERR_DEVICE, "matmul: %s: cuBLASLt: %s", what, s->blas->cublasLtGetStatusString(status));
}

static enum code state_open(struct device *dev)
{
    const struct blas *blas;
    TRY(blas_load(&blas));
    struct matmul_state *s = (struct matmul_state *)calloc(1, sizeof *s);
    if (s == NULL)
        return fail(ERR_MEMORY, "matmul: out of memory");
    dev->own->matmul = s;
    s->blas = blas;
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint64_t work = dev->work_bytes;
    TRY(blas_result(s, "opening", blas->cublasLtCreate(&s->handle)));
    TRY(blas_result(s, "opening", blas->cublasLtMatmulPreferenceCreate(&s->preference)));
    TRY(blas_result(s, "opening", blas->cublasLtMatmulPreferenceSetAttribute(s->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes)));
    return blas_result(s, "opening", blas->cublasLtMatmulPreferenceSetAttribute(s->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &work, sizeof work));
}

static void plan_free(const struct blas *blas, struct plan *p)
{
    if (p->desc != NULL)
        blas->cublasLtMatmulDescDestroy(p->desc);
    if (p->A != NULL)
        blas->cublasLtMatrixLayoutDestroy(p->A);
    if (p->B != NULL)
        blas->cublasLtMatrixLayoutDestroy(p->B);
    if (p->D != NULL)
        blas->cublasLtMatrixLayoutDestroy(p->D);
    memset(p, 0, sizeof *p);
}

void matmul_close(struct device *dev)
{
    struct matmul_state *s = dev->own->matmul;
    if (s == NULL)
        return;
    for (int i = 0; i < PLANS; i++)
        plan_free(s->blas, &s->plans[i]);
    plan_free(s->blas, &s->extra);
    if (s->preference != NULL)
        s->blas->cublasLtMatmulPreferenceDestroy(s->preference);
    if (s->handle != NULL)
        s->blas->cublasLtDestroy(s->handle);
    free(s);
    dev->own->matmul = NULL;
}

static cudaDataType_t data_type(int dtype) { return dtype == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

static enum code layout_make(const struct matmul_state *s, cublasLtMatrixLayout_t *out, const struct matmul_matrix *x, int dtype)
{
    return blas_result(s, "a layout", s->blas->cublasLtMatrixLayoutCreate(out, data_type(dtype), (uint64_t)x->rows, (uint64_t)x->cols, x->ld));
}

#define DESC_SET(p, name, value) \
    TRY(blas_result(s, #name, s->blas->cublasLtMatmulDescSetAttribute((p)->desc, CUBLASLT_MATMUL_DESC_##name, &(value), sizeof(value))))
#define PREFER(name, value) \
    TRY(blas_result(s, #name, s->blas->cublasLtMatmulPreferenceSetAttribute(s->preference, CUBLASLT_MATMUL_PREF_##name, &(value), sizeof(value))))

/* *found = 0: the library has nothing for this product. bias: of this call; an epilogue without one is refused by the heuristic. */
static enum code plan_make(struct matmul_state *s, struct plan *p, const struct plan_key *key, const void *bias, int *found)
{
    const struct matmul_layout *l = &key->layout;
    const cublasOperation_t op_a = l->A.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = l->B.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint32_t align_a = (uint32_t)key->align_a, align_b = (uint32_t)key->align_b, align_d = (uint32_t)key->align_d;
    memset(p, 0, sizeof *p);
    memcpy(&p->key, key, sizeof *key);
    p->used = 1;
    TRY(blas_result(s, "a product", s->blas->cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)));
    DESC_SET(p, TRANSA, op_a);
    DESC_SET(p, TRANSB, op_b);
    if (key->bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const int32_t type = CUDA_R_32F;
        DESC_SET(p, EPILOGUE, epilogue);
        DESC_SET(p, BIAS_DATA_TYPE, type);
        DESC_SET(p, BIAS_POINTER, bias);
    }
    TRY(layout_make(s, &p->A, &l->A, key->in_type));
    TRY(layout_make(s, &p->B, &l->B, key->in_type));
    TRY(layout_make(s, &p->D, &l->D, key->out_type));
    PREFER(MIN_ALIGNMENT_A_BYTES, align_a);
    PREFER(MIN_ALIGNMENT_B_BYTES, align_b);
    PREFER(MIN_ALIGNMENT_C_BYTES, align_d);
    PREFER(MIN_ALIGNMENT_D_BYTES, align_d);
    cublasLtMatmulHeuristicResult_t best;
    int n = 0;
    cublasStatus_t status = s->blas->cublasLtMatmulAlgoGetHeuristic(s->handle, p->desc, p->A, p->B, p->D, p->D, s->preference, 1, &best, &n);
    *found = status == CUBLAS_STATUS_SUCCESS && n == 1;
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED && !key->bias) /* with a bias there is another way */
        return blas_result(s, "choosing an algorithm", status);
    p->algo = best.algo;
    p->work_bytes = best.workspaceSize;
    return OK;
}

static uint64_t key_hash(const struct plan_key *key)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ ((const unsigned char *)key)[i]) * 0x100000001b3u;
    return h ^ h >> 32;
}

/* A plan that cannot be made leaves its place free: the next call asks again and says the same. */
static enum code plan_find(struct matmul_state *s, const struct plan_key *key, const void *bias, struct plan **out, int *found)
{
    int i = (int)(key_hash(key) % PLANS);
    for (; s->plans[i].used; i = (i + 1) % PLANS)
        if (memcmp(&s->plans[i].key, key, sizeof *key) == 0) {
            *out = &s->plans[i];
            *found = 1;
            return OK;
        }
    struct plan *p = s->n_plans < PLANS * 3 / 4 ? &s->plans[i] : &s->extra;
    plan_free(s->blas, p);
    enum code c = plan_make(s, p, key, bias, found);
    if (c != OK || !*found)
        plan_free(s->blas, p);
    else if (p != &s->extra)
        s->n_plans++;
    *out = p;
    return c;
}

static int alignment(const void *p)
{
    uintptr_t bits = (uintptr_t)p | 256;
    return (int)(bits & (~bits + 1));
}

static enum code product(struct device *dev, const struct plan_key *key, void *d, const void *a, const void *b, const void *bias, float alpha,
                         float beta, int *found)
{
    struct matmul_state *s = dev->own->matmul;
    struct plan *p;
    TRY(plan_find(s, key, bias, &p, found));
    if (!*found)
        return OK;
    if (key->bias)
        DESC_SET(p, BIAS_POINTER, bias);
    return blas_result(s, "a product",
                       s->blas->cublasLtMatmul(s->handle, p->desc, &alpha, b, p->A, a, p->B, &beta, d, p->D, d, p->D, &p->algo, dev->work,
                                               p->work_bytes, dev->own->stream));
}

static enum code check(struct view c, struct view a, struct view b, struct view bias, int trans_a, int trans_b)
{
    const char *op = "matmul";
    TRY(cuda_check_type(op, a));
    TRY(cuda_check_type(op, c));
    if (a.dtype == DT_F32 && c.dtype != DT_F32)
        return fail(ERR_UNSUPPORTED, "%s: c is %s; f32 matrices give f32", op, dtype_name(c.dtype));
    TRY(cuda_check(op, "c", c, c.dtype, 2, -1, -1, 0));
    const int64_t M = c.n[0], N = c.n[1];
    TRY(cuda_check(op, "a", a, a.dtype, 2, trans_a ? -1 : M, trans_a ? M : -1, 0));
    const int64_t K = a.n[trans_a ? 0 : 1];
    TRY(cuda_check(op, "b", b, a.dtype, 2, trans_b ? N : K, trans_b ? K : N, 0));
    TRY(cuda_check(op, "bias", bias, DT_F32, 1, N, -1, 1));
    if (M > INT32_MAX || N > INT32_MAX || K > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: [%lld,%lld] x %lld; dims must be below 2^31", op, (long long)M, (long long)N, (long long)K);
    if (K == 0)
        return fail(ERR_UNSUPPORTED, "%s: nothing to sum over (the inner dimension is 0)", op);
    return OK;
}

enum code cuda_matmul(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int trans_a, int trans_b, float alpha,
                      float beta)
{
    TRY(check(c, a, b, bias, trans_a, trans_b));
    if (c.n[0] == 0 || c.n[1] == 0)
        return OK;
    if (dev->own->matmul == NULL)
        TRY(state_open(dev));
    struct plan_key key;
    int found = 0;
    memset(&key, 0, sizeof key);
    key.layout = matmul_layout_of(c, a, b, trans_a, trans_b);
    key.in_type = a.dtype, key.out_type = c.dtype;
    key.beta = beta != 0;
    key.align_a = alignment(b.p), key.align_b = alignment(a.p), key.align_d = alignment(c.p);
    key.bias = bias.p != NULL && c.dtype == DT_F32;
    TRY(product(dev, &key, c.p, a.p, b.p, bias.p, alpha, beta, &found));
    if (!found && key.bias) {
        key.bias = 0;
        TRY(product(dev, &key, c.p, a.p, b.p, NULL, alpha, beta, &found));
    }
    if (!found)
        return fail(ERR_UNSUPPORTED, "matmul: cuBLASLt has no algorithm for [%lld,%lld] = %s [%lld,%lld]%s by [%lld,%lld]%s on %s", (long long)c.n[0],
                    (long long)c.n[1], dtype_name(a.dtype), (long long)a.n[0], (long long)a.n[1], trans_a ? "'" : "", (long long)b.n[0],
                    (long long)b.n[1], trans_b ? "'" : "", dev->name);
    return bias.p != NULL && !key.bias ? bias_add(dev, c, bias) : OK;
}

} // namespace CUDA_NS
