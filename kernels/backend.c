/* Which backend runs: the table of each is generated from KERNEL_OPS. What "auto" means can be set: GQAKIT_DEVICE=cpu|cuda in the
 * environment. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#define KERNEL_SLOT(op) .op = cpu_##op,
static const struct backend backend_cpu = {.name = "cpu", KERNEL_OPS(KERNEL_SLOT)};

#ifdef GQAKIT_CUDA
static enum code find_cuda(const struct backend **backend)
{
    TRY(cuda_usable());
    *backend = cuda_backend();
    return OK;
}
#else
static enum code find_cuda(const struct backend **backend)
{
    (void)backend;
    return fail(ERR_DEVICE, "this build has no CUDA backend (nvcc was not found when it was built)");
}
#endif

enum code backend_find(const char *name, const struct backend **backend)
{
    const char *set = getenv("GQAKIT_DEVICE");
    if (strcmp(name, "auto") == 0 && set != NULL && *set != 0 && strcmp(set, "auto") != 0)
        return fail_in(backend_find(set, backend), "GQAKIT_DEVICE");
    *backend = &backend_cpu;
    if (strcmp(name, "cpu") == 0)
        return OK;
    if (strcmp(name, "cuda") == 0)
        return fail_in(find_cuda(backend), "--device cuda");
    if (strcmp(name, "auto") != 0)
        return fail(ERR_USAGE, "device '%s' is unknown; use auto, cpu or cuda", name);
#ifdef GQAKIT_CUDA
    if (find_cuda(backend) != OK)
        log_info("device: the CPU, because %s", fail_text());
#endif
    return OK;
}
