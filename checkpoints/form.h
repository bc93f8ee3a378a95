/* How a file form plugs into checkpoint.c. A form is one table (struct ckpt_form) and one line in FORMS below. Its private
 * structs begin with struct checkpoint or struct ckpt_writer. The common part does what every form needs: dtype conversion
 * in bounded blocks (blocks.c), "every row exactly once" (blocks.c), the rules of targets (target.c), companions, names.
 * A form therefore only moves raw rows: canonical layout, stored dtype. */
#ifndef GQAKIT_CHECKPOINTS_FORM_H
#define GQAKIT_CHECKPOINTS_FORM_H

#include "checkpoint.h"

/* Every form, in probing order: hf.c, llama2c.c ... A new form is one table and one X here. */
#define CKPT_FORMS(X) \
    X(form_h5)        \
    X(form_hf)        \
    X(form_llama2c)   \
    X(form_gguf)      \
    X(form_step)

/* ---- reading ------------------------------------------------------------------------------------------------------ */

struct strings { char **v; int n; }; /* owned copies, freed with the checkpoint */

struct checkpoint {
    const struct ckpt_form *form;
    char *path;
    struct arch arch;
    struct ckpt_tensor *tensors; /* [n_tensors], order of the source files */
    int n_tensors;
    int *by_name;       /* [n_tensors] indices sorted by canonical name; made by ckpt_open */
    const char **files; /* [n_files], entries live in strings; form_add_fileref appends */
    int n_files;
    struct ckpt_companion *companions; /* [n_companions], name and bytes live in strings / malloc; form_add_companion */
    int n_companions;
    struct strings strings;
};

struct ckpt_writer {
    const struct ckpt_form *form;
    char *path;      /* final name, without trailing slashes */
    char *temporary; /* PATH.tmp-PID; the form creates it (file or directory) */
    int force;
    struct arch arch;
    struct ckpt_tensor *tensors; /* [n_tensors], order of storing; dtype is the result's; bytes follow it */
    int n_tensors;
    unsigned char **rows_done; /* [n_tensors] one bit per row, NULL until the first row; rows_left counts down */
    int64_t *rows_left;
    struct ckpt_companion *companions; /* source's, replaced or extended by ckpt_add_file; the form stores them at commit */
    int n_companions;
    struct strings strings;
    int64_t bytes;   /* what the result needs on the disk, about */
    json_t *facts;   /* of ckpt_provenance; NULL */
    struct io_lock locks[2]; /* of runs at the target and around it; -1: none */
};

struct ckpt_form {
    const char *name; /* "Hugging Face directory" */

    /* 1 if the path looks like this form (magic, file names). Cheap, sets no error. */
    int (*probe)(const char *path);
    /* Makes ck with form_checkpoint_new(&ck, sizeof(struct mine), form, path), fills arch, tensors, files, companions.
     * On error returns the code after ckpt_close(ck) (which calls close; it must bear a half-made ck). */
    enum code (*open)(struct checkpoint **ck, const char *path, const struct ckpt_options *options);
    /* Rows [row, row+rows) of tensor i, canonical layout, stored dtype, into dst (rows * n[1] * dtype bytes; already range
     * checked). Must be safe from several threads at once. */
    enum code (*read)(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst);
    /* Of forms that compute what they read (rewrite_read.c): the same straight into another element type. NULL: by conversion. */
    enum code (*read_as)(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst, enum dtype as);
    void (*close)(struct checkpoint *ck); /* frees the form's own members only; may be NULL */

    /* NULL members: this form cannot be written. */
    int (*claims)(const char *target_path); /* 1 if a target of this name is ours (*.h5). form_hf claims what nobody else does */
    /* Makes w with form_writer_new (which does all refusals, free space, companions and the tensor list), then creates
     * w->temporary. On error returns the code after ckpt_abandon(w). */
    enum code (*create)(struct ckpt_writer **w, const struct ckpt_target *target);
    /* As read: rows in the result's dtype, range checked, never twice. */
    enum code (*write)(struct ckpt_writer *w, int i, int64_t row, int64_t rows, const void *src);
    /* All rows are there: store companions and what else belongs in, fsync everything under w->temporary, close it. The
     * dispatcher then installs it with target_install. */
    enum code (*finish)(struct ckpt_writer *w);
    void (*drop)(struct ckpt_writer *w); /* closes files, frees own members; called on commit and on abandon; may be NULL */
};

#define CKPT_FORM_DECLARE(form) extern const struct ckpt_form form;
CKPT_FORMS(CKPT_FORM_DECLARE)

/* ---- help for forms (form.c) -------------------------------------------------------------------------------------- */

/* calloc of `bytes` (>= sizeof(struct checkpoint)), path copied without trailing slashes, form set; arch is zero. */
enum code form_checkpoint_new(struct checkpoint **ck, size_t bytes, const struct ckpt_form *form, const char *path) MUST_USE;
/* ck->tensors from ck->arch: canonical order, names and shapes; dtype DT_NONE, source and file "", bytes 0. */
enum code form_tensors(struct checkpoint *ck) MUST_USE;
/* Sets dtype, source, file and bytes of one tensor; the strings are copied into ck. */
enum code form_tensor_set(struct checkpoint *ck, int i, enum dtype dtype, const char *source, const char *file) MUST_USE;
/* ck->by_name, when the tensors are in their final order. */
enum code form_index(struct checkpoint *ck) MUST_USE;
int form_tensor_index(const struct ckpt_tensor *tensors, int n, const char *canonical); /* linear; -1 if absent */
enum code form_add_fileref(struct checkpoint *ck, const char *name) MUST_USE;
/* Takes a copy. A companion of the same name is replaced. */
enum code form_add_companion(struct ckpt_companion **list, int *n, const char *name, const void *bytes, size_t size) MUST_USE;
void form_free_companions(struct ckpt_companion *list, int n);
/* Copy owned by the pool; NULL when out of memory. */
const char *form_string(struct strings *pool, const char *s);

/* Path checks of ckpt_create, free space for the tensors, arch copy, companions of the source, tensor list (source order if
 * there is a source, else canonical order; dtype resolved; source name "" and file "" unless the source had them),
 * w->temporary's name. */
enum code form_writer_new(struct ckpt_writer **w, size_t bytes, const struct ckpt_form *form, const struct ckpt_target *target) MUST_USE;

/* Small files that travel with a model: tokenizer.json ... by name; chat_template* and LICENSE* by prefix. */
int companion_is_known(const char *name);
enum code companions_from_dir(struct checkpoint *ck, const char *dir) MUST_USE; /* also adds them to files */

/* ---- targets (target.c) ------------------------------------------------------------------------------------------- */

/* ERR_USAGE: exists without force; same file or directory as the source, one inside the other (symlinks resolved). */
enum code target_check(const char *path, const char *source_path /* NULL */, int force) MUST_USE;
enum code target_space(const char *path, int64_t bytes) MUST_USE; /* ERR_IO with needed and free */
/* After an error: if a disk, quota or file size limit was full, the sentence gets the bytes needed and the bytes free now. Returns c. */
enum code target_full(enum code c, const char *path, int64_t bytes);
/* Temporaries PATH.tmp-PID of processes that are gone, untouched for ten minutes: removed. Younger ones may belong to another machine on the
 * same file system: a warning names them. */
void target_stale(const char *path, int alone /* the lock around the target says that no other process writes here */);
/* ERR_LOCKED when another process's run holds the target or the directory around it: two locks. The target may not exist. */
enum code target_locks(const char *path, struct io_lock *locks) MUST_USE;
/* temporary -> path: an old target is moved aside, and removed after the new one is in place. Parent fsynced. */
enum code target_install(const char *temporary, const char *path, int force) MUST_USE;

#endif
