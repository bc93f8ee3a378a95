/* Floor 2: the model at rest. A checkpoint is opened, not loaded: tensors are read and written in row blocks, so converting
 * any size of model takes memory for a few blocks; where rows do not lie in rows of the file (GPT-2, GPT-J), for one tensor on
 * each side. Forms: Hugging Face directory (safetensors, sharded or not), native HDF5 (.h5, step directories of a training run),
 * llama2.c .bin (in only), GGUF (out only).
 * A malformed file is ERR_INPUT with one sentence, never a crash. */
#ifndef GQAKIT_CHECKPOINTS_CHECKPOINT_H
#define GQAKIT_CHECKPOINTS_CHECKPOINT_H

#include "arch.h"
#include "base/base.h"
#include "card.h"
#include "kv_budget.h"
#include "provenance.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- reading ------------------------------------------------------------------------------------------------------ */

struct checkpoint;

struct ckpt_tensor {
    char name[64];      /* canonical */
    const char *source; /* name in the file: "model.layers.0.self_attn.k_proj.weight" */
    const char *file;   /* base name of the file that holds it */
    enum dtype dtype;   /* as stored */
    int nd;
    int64_t n[2];
    int64_t bytes; /* canonical bytes = product(n) * dtype_bytes */
    enum pool_kind pool;
    int64_t layer; /* -1 outside the layers */
};

/* The row block a streaming caller should aim for: it stays in the second-level cache between reading and writing (measured:
 * blocks of 8 MiB copy at half the speed). Never below one row. */
#define CKPT_BLOCK_BYTES ((int64_t)1 << 20)

struct ckpt_options { int64_t header_limit; /* safetensors JSON header cap; 0 = 16 MiB */ };

/* PATH: HF directory, .h5, llama2.c .bin, step directory or run directory (its newest step that verifies; a damaged newer
 * one is a warning). Checks that every tensor of the arch is there with the right shape and nothing of meaning is left over. */
enum code ckpt_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options /* NULL: defaults */) MUST_USE;
void ckpt_close(struct checkpoint *ck); /* NULL is fine */
const struct arch *ckpt_arch(const struct checkpoint *ck);
const char *ckpt_path(const struct checkpoint *ck);
const char *ckpt_form_name(const struct checkpoint *ck); /* "Hugging Face directory", ... */
int ckpt_count(const struct checkpoint *ck);
const struct ckpt_tensor *ckpt_at(const struct checkpoint *ck, int i); /* order of the source files: good for streaming */
const struct ckpt_tensor *ckpt_find(const struct checkpoint *ck, const char *canonical); /* NULL if absent */
/* Rows [row, row+rows) in canonical layout; elements converted to `as` (DT_NONE or the stored dtype: raw bytes). Thread-safe. */
enum code ckpt_read(struct checkpoint *ck, const struct ckpt_tensor *t, int64_t row, int64_t rows, void *dst, enum dtype as) MUST_USE;
/* Files that make up the checkpoint (weights, config, tokenizer), names relative to the path; for hashing and copying. */
int ckpt_files(const struct checkpoint *ck, const char *const **names);
/* Small companion files (tokenizer.json, generation_config.json ...): bytes to carry on, from a directory or from inside an .h5. */
struct ckpt_companion { const char *name; const char *bytes; size_t n; };
int ckpt_companions(const struct checkpoint *ck, const struct ckpt_companion **list);

/* ---- writing ------------------------------------------------------------------------------------------------------ */

struct ckpt_writer;

struct ckpt_target {
    const char *path;         /* *.h5 native, *.gguf for llama.cpp, else a Hugging Face directory */
    const struct arch *arch;  /* of the result */
    struct checkpoint *source; /* whose config.json, companions, tensor names, dtypes, order and shards are kept; NULL: a new model */
    enum dtype dtype;         /* DT_NONE: each tensor keeps its source dtype (a new model: f32) */
    int64_t shard_bytes;      /* HF: start a new shard beyond this; 0 = as the source, or 5 GB */
    int force;                /* replace an existing target */
    int compress;             /* .h5: shuffle + deflate 1 */
};
/* Refuses (ERR_USAGE) an existing target without force, a target inside or equal to the source, another extension than known.
 * Everything goes to PATH.tmp-PID next to it. Disk space is checked first (ERR_IO with needed and free). */
/* The refusals alone, without writing anything: what a dry run asks. Disk space is not part of it. */
enum code ckpt_target_check(const struct ckpt_target *target) MUST_USE;
enum code ckpt_create(struct ckpt_writer **w, const struct ckpt_target *target) MUST_USE;
/* Tensors in the order the writer will store them, with their result dtype; walk this order to write sequentially. */
int ckpt_writer_count(const struct ckpt_writer *w);
const struct ckpt_tensor *ckpt_writer_at(const struct ckpt_writer *w, int i);
/* Rows in canonical layout, elements of type `type` are converted to the result dtype. Every row exactly once. */
enum code ckpt_write(struct ckpt_writer *w, const struct ckpt_tensor *t, int64_t row, int64_t rows, const void *src, enum dtype type) MUST_USE;
/* An extra file of the result ("README.md"); replaces a companion of that name. In an .h5 it becomes a companion. */
enum code ckpt_add_file(struct ckpt_writer *w, const char *name, const void *bytes, size_t n) MUST_USE;
/* A directory gets PROVENANCE.json with these facts (provenance.h) before it appears. Nothing happens to other forms. */
void ckpt_provenance(struct ckpt_writer *w, const json_t *facts);
/* Where a directory stands until ckpt_commit, for what else is to lie in it; NULL for other forms. */
const char *ckpt_writer_dir(const struct ckpt_writer *w);
/* Checks that all is written, fsyncs, renames into place. Frees w in every case. */
enum code ckpt_commit(struct ckpt_writer *w) MUST_USE;
void ckpt_abandon(struct ckpt_writer *w); /* removes the temporary; NULL is fine */

/* The config.json text a Hugging Face directory of this arch has: the source's with unknown keys carried through and only
 * num_key_value_heads (and torch_dtype when it changed) edited, or a fresh one. malloc'ed. */
enum code arch_to_config_json(const struct arch *a, enum dtype dtype, char **text) MUST_USE;
/* config.json bytes -> arch. Unknown semantic keys are ERR_UNSUPPORTED by name. `where`: path for sentences. Fuzz entry. */
enum code arch_from_config_json(struct arch *a, const char *bytes, size_t n, const char *where) MUST_USE;

/* ---- where a result can live --------------------------------------------------------------------------------------
 * In this order of preference: the family's own class; another family's class that has K/V heads, after exact rewritings
 * (rewrite.h); a Hugging Face directory with a modeling file of ours (family "gqakit"). On request alone: every head's own copy of
 * its K/V (plain MHA, loads everywhere, saves nothing). GGUF (target path *.gguf) by the architectures llama.cpp has. */
enum ckpt_home { HOME_AUTO, HOME_NATIVE, HOME_RETARGET, HOME_GGUF, HOME_CUSTOM, HOME_EXPANDED };
#define CKPT_HOMES "auto|native|retarget|gguf|custom|expanded"
struct ckpt_choice {
    enum ckpt_home home;
    char family[32];    /* of the result: the source's, "phi", "gqakit" ... */
    unsigned rewrite;   /* enum rewrite_step bits */
    int exact;          /* 0: the result computes something slightly else; the sentence says what */
    char sentence[512]; /* for people: where it goes and why */
};
/* For a model of this arch (its K/V heads already those of the result). asked HOME_AUTO chooses; anything else is taken or
 * refused (ERR_UNSUPPORTED, with the reason). family NULL or the one wanted of HOME_RETARGET. A .h5 path holds everything natively. */
enum code ckpt_choose(const struct arch *result, const char *path, enum ckpt_home asked, const char *family, struct ckpt_choice *choice) MUST_USE;
/* What the choice makes of the model it was asked about: the family's name, rewritten, every head expanded. In place. */
enum code ckpt_choice_arch(struct arch *a, const struct ckpt_choice *choice) MUST_USE;
const char *ckpt_home_name(enum ckpt_home home); /* "native" ... as CKPT_HOMES spells it */
/* The source, read through the choice's rewritings under the family's name: a checkpoint like any other. Takes over `source`
 * (also on an error). Without a choice to make (native) it is the source itself. */
enum code ckpt_rewritten(struct checkpoint **out, struct checkpoint *source, const struct ckpt_choice *choice) MUST_USE;

/* ---- training state: step directories ------------------------------------------------------------------------------
 * RUN/step-00001000/{rank-00000.h5, MANIFEST.json}: written to a temporary name, flushed, fsynced, hashed, renamed; MANIFEST
 * last. Arrays are stored by name ("param/embed.weight", "m/...", "v/..."), chunked with fletcher32. */

/* How arrays outside host memory are reached: copies bytes in either direction. */
struct step_copy { enum code (*copy)(void *context, void *dst, const void *src, size_t bytes); void *context; };
struct step_array;
/* Arrays that are computed while they are written: rows [row, row+rows) into dst, in order. */
struct step_source { enum code (*rows)(void *context, const struct step_array *array, int64_t row, int64_t rows, void *dst); void *context; };
struct step_array {
    char name[80];
    enum dtype dtype;
    int nd;
    int64_t n[2];
    void *p;                          /* contiguous */
    const struct step_copy *through;  /* p is reached by this, in row blocks of about 4 MiB; NULL: host memory */
    const struct step_source *source; /* step_save: where the values come from, and p is not looked at; NULL: p */
};

struct step_content {
    int64_t step;
    const struct arch *arch;
    struct checkpoint *source; /* companions are carried; may be NULL */
    const struct step_array *arrays;
    int n_arrays;
    const json_t *meta; /* caller's own: resolved config, data position, threads, isa ... */
    int compress;
};
/* Saves, then prunes complete older steps beyond keep (>= 2, newest kept; keep 0: all). */
enum code step_save(const char *run_dir, const struct step_content *content, int keep) MUST_USE;

struct step_reader;
/* The newest verifying step of a run directory, or a step directory itself. *found = 0 and OK when a run directory holds none. */
enum code step_open(struct step_reader **r, const char *path, int *found) MUST_USE;
int64_t step_number(const struct step_reader *r);
const json_t *step_meta(const struct step_reader *r);
const struct arch *step_arch(const struct step_reader *r);
/* Reads the whole array; dtype and shape must match exactly. */
enum code step_read(struct step_reader *r, const struct step_array *array) MUST_USE;
/* Rows [row, row+rows) of an f32 array of this shape. */
enum code step_read_rows(struct step_reader *r, const char *name, const int64_t n[2], int64_t row, int64_t rows, float *dst) MUST_USE;
void step_close(struct step_reader *r);
/* The optimiser's moments that belong to a checkpoint, "m/NAME" and "v/NAME": of a step or run directory its own, of a directory that
 * gqa-convert wrote those in PATH/optimizer. *found = 0 and OK when there are none. *updates: how many updates made them (AdamW's t). */
#define MOMENTS_DIR "optimizer"
enum code moments_open(struct step_reader **r, const char *path, int64_t *updates, int *found) MUST_USE;
/* Re-hashes a step directory, an HF directory with provenance, or a .h5 against what it recorded. */
enum code ckpt_verify(const char *path, int *files_checked) MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
