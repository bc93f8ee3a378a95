/* Device tests with the kernels in the SIMT executor. Device memory is host memory with a shadow. */
#include "link.h"

#include <string.h>

#include "simt_host.h"

const struct backend *case_backend(void)
{
    return simt_backend();
}

int link_arch(struct device *dev, int arch)
{
    if (dev == NULL)
        simt_open_as(arch);
    return 1;
}

void *link_alloc(struct device *dev, size_t bytes, int initialised)
{
    (void)dev;
    return simt_alloc(bytes, initialised);
}

void link_free(struct device *dev, void *p)
{
    (void)dev;
    simt_free(p);
}

void link_write(struct device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    memcpy(dst, src, bytes);
}

int link_faults(void)
{
    return simt_faults();
}
