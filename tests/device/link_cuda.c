/* Device tests with the kernels on a GPU. Overruns are compute-sanitizer's business. */
#include "link.h"

#include <stdlib.h>
#include <string.h>

struct allocation {
    struct arena arena;
    struct allocation *next;
};
static struct allocation *allocations;
static int real_arch;

/* struct device of kernels/cuda/cuda.cuh begins with the generation that chooses the kernels. */
struct device_head {
    int arch;
};

const struct backend *case_backend(void)
{
    return cuda_backend();
}

/* A newer device also runs the kernels of the older generation. */
int link_arch(struct device *dev, int arch)
{
    if (dev == NULL)
        return 1;
    struct device_head *head = (struct device_head *)(void *)dev;
    if (real_arch == 0)
        real_arch = head->arch;
    if (real_arch < arch)
        return 0;
    head->arch = arch;
    return 1;
}

void *link_alloc(struct device *dev, size_t bytes, int initialised)
{
    struct allocation *a = calloc(1, sizeof *a);
    CHECK(a != NULL);
    enum code code = case_backend()->device_alloc(dev, &a->arena, "a test", bytes);
    if (code != OK)
        exit(fail_exit("device test", code));
    a->next = allocations;
    allocations = a;
    if (!initialised) {
        char *poison = malloc(bytes);
        CHECK(poison != NULL);
        memset(poison, 0xff, bytes); /* NaN in every float type */
        link_write(dev, a->arena.base, poison, bytes);
        free(poison);
    }
    return a->arena.base;
}

void link_free(struct device *dev, void *p)
{
    for (struct allocation **at = &allocations; *at != NULL; at = &(*at)->next)
        if ((*at)->arena.base == p) {
            struct allocation *a = *at;
            *at = a->next;
            case_backend()->device_free(dev, &a->arena);
            free(a);
            return;
        }
    check_failed(__FILE__, __LINE__, "freed what was not allocated");
}

void link_write(struct device *dev, void *dst, const void *src, size_t bytes)
{
    enum code code = case_backend()->device_copy(dev, dst, src, bytes);
    if (code != OK)
        exit(fail_exit("device test", code));
}

int link_faults(void)
{
    return 0;
}
