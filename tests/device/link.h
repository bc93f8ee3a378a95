/* What differs between the two links of a device test: link_simt.c or link_cuda.c. */
#ifndef GQAKIT_TESTS_DEVICE_LINK_H
#define GQAKIT_TESTS_DEVICE_LINK_H

#include "kernels/kernels.h"

const struct backend *case_backend(void); /* also in device_case.h */
/* 0 when this device cannot run as that generation (80 or 90). Called before device_open with dev NULL, and again after it. */
int link_arch(struct device *dev, int arch);
/* Device memory, at least `bytes`, 256-byte aligned. Executor: between unreadable bytes, uninitialised unless asked otherwise. */
void *link_alloc(struct device *dev, size_t bytes, int initialised);
void link_free(struct device *dev, void *p);
void link_write(struct device *dev, void *dst, const void *src, size_t bytes); /* from the host; the executor's shadow is not told */
int link_faults(void);

#endif
