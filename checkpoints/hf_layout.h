/* What a new Hugging Face directory will hold; made by hf_layout.c, filled by hf_write.c. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_HF_LAYOUT_H
#define GQAKIT_CHECKPOINTS_HF_LAYOUT_H

#include "hf.h"

struct hf_out_shard { const char *name; char *path; int fd; int64_t data, bytes, unsynced; };

/* A tensor of the files: begin and end relative to its shard's data. */
struct hf_stored {
    struct st_tensor tensor;
    int shard;
    int64_t order; /* of the files; those the source lacks come last */
    const char *file; /* of the source, or NULL */
    int64_t left; /* canonical rows not yet written; counted down only where they are collected */
    char *whole;  /* the tensor while it is collected, or NULL */
};

struct hf_writer {
    struct ckpt_writer base;
    char *config;
    struct hf_out_shard *shards;
    int n_shards;
    struct hf_stored *stored; /* in the order of the files */
    int n_stored;
    struct hf_rows *rows; /* [n_tensors] */
    int *place;           /* index into stored; entry rows[i].at + piece */
};

/* Everything of w but config: no file is touched. hf_drop frees, after an error too. */
enum code hf_layout_make(struct hf_writer *w, const struct ckpt_target *target) MUST_USE;

#endif
