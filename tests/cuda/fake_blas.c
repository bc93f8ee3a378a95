/* cuBLASLt without a GPU: a shared library under its name that blas.cu opens, with the functions of blas.cuh. A product is done by the
 * column-major definition of the manual, in f32 (f64 sums), when the fake stream reaches it. */
#include <cublasLt.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_cuda.h"

struct desc {
    int32_t trans_a, trans_b, bias_type;
    uint32_t epilogue;
    const void *bias;
};
struct layout {
    int32_t type;
    int64_t rows, cols, ld;
};
struct product {
    struct desc desc;
    struct layout A, B, D;
    const void *a, *b;
    void *d;
    float alpha, beta;
};

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t *h)
{
    *h = calloc(1, 1);
    fake.live++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t h)
{
    free(h);
    fake.live--;
    return CUBLAS_STATUS_SUCCESS;
}
const char *CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_SUCCESS ? "fine" : "a fake refusal";
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    struct desc *d = calloc(1, sizeof *d);
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        fake_fault("a product that is not computed in f32");
    *out = (cublasLtMatmulDesc_t)(void *)d;
    fake.live++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    free(d);
    fake.live--;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t at, cublasLtMatmulDescAttributes_t what, const void *value,
                                                           size_t bytes)
{
    struct desc *d = (struct desc *)(void *)at;
    void *to = what == CUBLASLT_MATMUL_DESC_TRANSA           ? (void *)&d->trans_a
               : what == CUBLASLT_MATMUL_DESC_TRANSB         ? (void *)&d->trans_b
               : what == CUBLASLT_MATMUL_DESC_EPILOGUE       ? (void *)&d->epilogue
               : what == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE ? (void *)&d->bias_type
               : what == CUBLASLT_MATMUL_DESC_BIAS_POINTER   ? (void *)&d->bias
                                                             : NULL;
    if (!to || bytes != (what == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? 8u : 4u)) {
        fake_fault("attribute %d of a product, %zu bytes", (int)what, bytes);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    struct layout *l = calloc(1, sizeof *l);
    l->type = type, l->rows = (int64_t)rows, l->cols = (int64_t)cols, l->ld = ld;
    *out = (cublasLtMatrixLayout_t)(void *)l;
    fake.live++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    free(l);
    fake.live--;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = calloc(1, 1);
    fake.live++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    free(p);
    fake.live--;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what,
                                                                 const void *value, size_t bytes)
{
    const size_t want = what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4;
    uint32_t word;
    (void)p;
    memcpy(&word, value, 4);
    if (bytes != want || (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && (word & CUBLASLT_REDUCTION_SCHEME_INPLACE)))
        fake_fault("preference %d: %zu bytes", (int)what, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t A,
                                                           cublasLtMatrixLayout_t B, cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                                           cublasLtMatmulPreference_t p, int room, cublasLtMatmulHeuristicResult_t *out, int *n)
{
    const struct desc *d = (const struct desc *)(void *)desc;
    (void)h, (void)A, (void)B, (void)C, (void)D, (void)p, (void)room;
    fake.questions++;
    memset(out, 0, sizeof *out);
    *n = 0;
    if (fake.nothing || (fake.no_bias && d->epilogue == CUBLASLT_EPILOGUE_BIAS))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *n = 1;
    out->workspaceSize = 1 << 20;
    return CUBLAS_STATUS_SUCCESS;
}

static float value_of(const struct layout *l, const void *p, int64_t i, int64_t j)
{
    const int64_t at = i + j * l->ld;
    if (l->type == CUDA_R_32F)
        return ((const float *)p)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[at] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void store(const struct layout *l, void *p, int64_t i, int64_t j, double x)
{
    const float f = (float)x;
    uint32_t bits;
    if (l->type == CUDA_R_32F) {
        ((float *)p)[i + j * l->ld] = f;
        return;
    }
    memcpy(&bits, &f, 4);
    ((uint16_t *)p)[i + j * l->ld] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void product_run(void *context)
{
    const struct product *p = context;
    const int ta = p->desc.trans_a == CUBLAS_OP_T, tb = p->desc.trans_b == CUBLAS_OP_T;
    const int64_t depth = ta ? p->A.rows : p->A.cols;
    for (int64_t j = 0; !fake.dry && j < p->D.cols; j++)
        for (int64_t i = 0; i < p->D.rows; i++) {
            double sum = 0;
            for (int64_t k = 0; k < depth; k++)
                sum += (double)(ta ? value_of(&p->A, p->a, k, i) : value_of(&p->A, p->a, i, k)) *
                       (double)(tb ? value_of(&p->B, p->b, j, k) : value_of(&p->B, p->b, k, j));
            sum *= (double)p->alpha;
            if (p->beta != 0) /* not read otherwise */
                sum += (double)p->beta * (double)value_of(&p->D, p->d, i, j);
            if (p->desc.epilogue == CUBLASLT_EPILOGUE_BIAS)
                sum += (double)((const float *)p->desc.bias)[i];
            store(&p->D, p->d, i, j, sum);
        }
}

static size_t span(const struct layout *l)
{
    return (size_t)((l->cols - 1) * l->ld + l->rows) * (l->type == CUDA_R_32F ? 4 : 2);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, const void *alpha, const void *a, cublasLtMatrixLayout_t A,
                                           const void *b, cublasLtMatrixLayout_t B, const void *beta, const void *c, cublasLtMatrixLayout_t C,
                                           void *d, cublasLtMatrixLayout_t D, const cublasLtMatmulAlgo_t *algo, void *work, size_t work_bytes,
                                           cudaStream_t s)
{
    struct product p;
    (void)h, (void)algo, (void)s;
    memcpy(&p.desc, (const void *)desc, sizeof p.desc);
    memcpy(&p.A, (const void *)A, sizeof p.A);
    memcpy(&p.B, (const void *)B, sizeof p.B);
    memcpy(&p.D, (const void *)D, sizeof p.D);
    p.a = a, p.b = b, p.d = d;
    memcpy(&p.alpha, alpha, 4);
    memcpy(&p.beta, beta, 4);
    const int ta = p.desc.trans_a == CUBLAS_OP_T, tb = p.desc.trans_b == CUBLAS_OP_T;
    if ((ta ? p.A.cols : p.A.rows) != p.D.rows || (tb ? p.B.rows : p.B.cols) != p.D.cols ||
        (ta ? p.A.rows : p.A.cols) != (tb ? p.B.cols : p.B.rows) || p.A.ld < p.A.rows || p.B.ld < p.B.rows || p.D.ld < p.D.rows || c != d || C != D ||
        p.A.type != p.B.type)
        fake_fault("a product whose matrices do not fit");
    if (!fake_is_device(a, span(&p.A)) || !fake_is_device(b, span(&p.B)) || !fake_is_device(d, span(&p.D)) || !fake_is_device(work, work_bytes))
        fake_fault("a product beyond device memory");
    if (p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS && (!fake_is_device(p.desc.bias, (size_t)p.D.rows * 4) || p.desc.bias_type != CUDA_R_32F))
        fake_fault("a bias that is not f32 in device memory");
    fake.products++;
    fake_enqueue(product_run, &p, sizeof p);
    return CUBLAS_STATUS_SUCCESS;
}
