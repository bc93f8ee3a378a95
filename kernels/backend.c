/* Which backend runs: the table of each is generated from KERNEL_OPS. */
#include "kernels.h"

#include <string.h>

#define KERNEL_SLOT(op) .op = cpu_##op,
static const struct backend backend_cpu = {.name = "cpu", KERNEL_OPS(KERNEL_SLOT)};

enum code backend_find(const char *name, const struct backend **backend)
{
    if (strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0) {
        *backend = &backend_cpu;
        return OK;
    }
    if (strcmp(name, "cuda") == 0)
        return fail(ERR_DEVICE, "device cuda: this build has no CUDA backend; use --device cpu");
    return fail(ERR_USAGE, "device '%s' is unknown; use auto, cpu or cuda", name);
}
