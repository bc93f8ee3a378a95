/* Parts of the native form that single files and step directories share (native_parts.c). Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_NATIVE_H
#define GQAKIT_CHECKPOINTS_NATIVE_H

#include "checkpoint.h"
#include "h5.h"

/* /arch.json and /config.json. On error *a needs no arch_free. */
enum code native_arch_write(struct h5_file *f, const struct arch *a) MUST_USE;
enum code native_arch_read(struct h5_file *f, const char *where, struct arch *a) MUST_USE;
enum code native_companions_write(struct h5_file *f, const struct ckpt_companion *list, int n) MUST_USE;
/* Attributes of /param/NAME: where the tensor came from. */
struct native_origin { const char *source, *file; enum dtype dtype; int order; };
enum code native_origin_write(struct h5_file *f, const char *dataset, const struct native_origin *o) MUST_USE;

#endif
