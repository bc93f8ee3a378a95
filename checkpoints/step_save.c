/* Saving a training step so that a crash at any instant leaves the old steps or the new one, whole:
 * free space -> step-N.tmp-PID/ -> rank-00000.h5 written, flushed, closed, fsynced -> hashed -> MANIFEST.json fsynced -> the
 * directory renamed -> parent fsynced -> when older steps have to go: read back and hashed -> those pruned. Pruning first renames a step to a temporary name, so that a half
 * deleted one is never taken for a step; temporaries of dead processes are removed by the next save. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint.h"
#include "form.h"
#include "native.h"
#include "step.h"

static void remove_or_warn(const char *path)
{
    if (io_remove_tree(path) != OK)
        log_warn("%s; remove it by hand", fail_text());
}

/* Ours, or of a process that no longer lives. The run directory is locked by its run, so nobody else writes here. */
static void remove_stale(const char *run_dir)
{
    char **names;
    int n;
    if (io_list(run_dir, &names, &n) != OK)
        return;
    for (int i = 0; i < n; i++) {
        long pid;
        if (!step_temporary_pid(names[i], &pid) || (pid != (long)getpid() && (kill((pid_t)pid, 0) == 0 || errno != ESRCH)))
            continue;
        char *path = io_join(run_dir, names[i]);
        if (!path)
            break;
        log_info("removing %s, left by a save that did not finish", path);
        remove_or_warn(path);
        free(path);
    }
    io_names_free(names, n);
}

static int64_t bytes_needed(const struct step_content *s)
{
    const struct ckpt_companion *list;
    int n = s->source ? ckpt_companions(s->source, &list) : 0;
    int64_t bytes = 1 << 20;
    for (int i = 0; i < s->n_arrays; i++)
        bytes += s->arrays[i].n[0] * (s->arrays[i].nd == 2 ? s->arrays[i].n[1] : 1) * (int64_t)dtype_bytes(s->arrays[i].dtype);
    for (int i = 0; i < n; i++)
        bytes += (int64_t)list[i].n;
    return bytes + bytes / 100;
}

/* ---- the file ----------------------------------------------------------------------------------------------------- */

static enum code write_through(struct h5_file *f, const struct step_array *from, const struct h5_array *a)
{
    int64_t rows = step_block_rows(a->dtype, a->n[1]), row_bytes = a->n[1] * (int64_t)dtype_bytes(a->dtype);
    char *block = malloc((size_t)(rows * row_bytes) + 1);
    enum code c = block ? OK : fail(ERR_MEMORY, "out of memory for a block of %s", from->name);
    for (int64_t row = 0; c == OK && row < a->n[0]; row += rows) {
        int64_t now = a->n[0] - row < rows ? a->n[0] - row : rows;
        c = from->source ? from->source->rows(from->source->context, from, row, now, block)
                         : from->through->copy(from->through->context, block, (const char *)from->p + row * row_bytes, (size_t)(now * row_bytes));
        if (c == OK)
            c = h5_rows_write(f, from->name, a, row, now, block);
    }
    free(block);
    return c;
}

static enum code array_write(struct h5_file *f, const struct step_content *s, int i)
{
    const struct step_array *from = &s->arrays[i];
    struct h5_array a = {from->dtype, from->nd, {from->n[0], from->nd == 2 ? from->n[1] : 1}};
    TRY(h5_array_create(f, from->name, &a, s->compress));
    if (!strncmp(from->name, "param/", 6)) {
        struct native_origin origin = {"", "", DT_NONE, i};
        const struct ckpt_tensor *t = s->source ? ckpt_find(s->source, from->name + 6) : NULL;
        if (t)
            origin = (struct native_origin){t->source, t->file, t->dtype, (int)(t - ckpt_at(s->source, 0))};
        TRY(native_origin_write(f, from->name, &origin));
    }
    return from->through || from->source ? write_through(f, from, &a) : h5_rows_write(f, from->name, &a, 0, a.n[0], from->p);
}

static enum code file_write(const char *path, const struct step_content *s)
{
    struct h5_file *f;
    const struct ckpt_companion *list = NULL;
    int n = s->source ? ckpt_companions(s->source, &list) : 0;
    TRY(h5_create(&f, path, 0));
    enum code c = native_arch_write(f, s->arch);
    if (c == OK)
        c = native_companions_write(f, list, n);
    for (int i = 0; c == OK && i < s->n_arrays; i++)
        c = array_write(f, s, i);
    if (c == OK)
        return h5_finish(f);
    h5_close(f);
    return c;
}

static enum code temporary_fill(const char *temporary, const struct step_content *s)
{
    static const char *const files[] = {STEP_FILE};
    if (mkdir(temporary, 0777))
        return fail_errno(temporary, "make directory");
    char *file = io_join(temporary, STEP_FILE);
    json_t *arch = arch_to_json(s->arch);
    enum code c = file && arch ? file_write(file, s) : fail(ERR_MEMORY, "%s: out of memory for its description", temporary);
    if (c == OK)
        c = manifest_write(temporary, s->step, files, 1, arch, s->meta);
    if (c == OK)
        c = io_fsync_path(temporary);
    json_decref(arch);
    free(file);
    return c;
}

/* ---- pruning ------------------------------------------------------------------------------------------------------ */

static void prune_one(const char *run_dir, const char *name)
{
    char *from = io_join(run_dir, name), *to = NULL;
    if (!from || asprintf(&to, "%s.tmp-%ld", from, (long)getpid()) < 0) {
        to = NULL;
        log_warn("%s/%s: cannot be pruned: out of memory", run_dir, name);
    } else if (io_rename(from, to) != OK) /* on the disk before anything below it goes */
        log_warn("%s; it is not pruned", fail_text());
    else
        remove_or_warn(to);
    free(to);
    free(from);
}

/* 1 when an older step would have to go. */
static int prune_due(const struct step_name *list, int n, int64_t saved, int keep)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        kept += list[i].step <= saved;
    return keep > 0 && kept > keep;
}

/* Keeps the `keep` newest up to the step just saved. Newer ones (of a branch left by resuming an older step) are not ours to
 * delete, but `resume: auto` would choose them, so they are named. */
static enum code prune(const char *run_dir, const char *final, int64_t saved, int keep)
{
    struct step_name *list;
    int n, kept = 0;
    if (step_names(run_dir, &list, &n) != OK) {
        log_warn("%s; older steps are not pruned", fail_text());
        return OK;
    }
    enum code c = prune_due(list, n, saved, keep) ? manifest_verify(final, NULL, NULL) : OK;
    if (c != OK)
        c = fail_in(c == ERR_INPUT ? ERR_IO : c, "the step just saved does not read back as it was written, older steps are kept");
    for (int i = 0; c == OK && i < n; i++) {
        if (list[i].step > saved)
            log_warn("%s/%s is newer than the step just saved (%lld); remove it if that branch is given up", run_dir, list[i].name,
                     (long long)saved);
        else if (keep > 0 && kept++ >= keep)
            prune_one(run_dir, list[i].name);
    }
    free(list);
    return c;
}

/* ---- entry -------------------------------------------------------------------------------------------------------- */

enum code step_save(const char *run_dir, const struct step_content *s, int keep)
{
    char *final = NULL, *temporary = NULL;
    CHECK(keep == 0 || keep >= 2);
    CHECK(s->step >= 0);
    fail_full_forget();
    TRY(target_full(io_mkdirs(run_dir), run_dir, bytes_needed(s)));
    remove_stale(run_dir);
    TRY(target_space(run_dir, bytes_needed(s)));
    if (asprintf(&final, "%s/step-%08lld", run_dir, (long long)s->step) < 0)
        return fail(ERR_MEMORY, "%s: out of memory for the name of a step", run_dir);
    if (asprintf(&temporary, "%s.tmp-%ld", final, (long)getpid()) < 0) {
        free(final);
        return fail(ERR_MEMORY, "%s: out of memory for the name of a step", run_dir);
    }
    enum code c = temporary_fill(temporary, s);
    if (c == OK)
        c = target_install(temporary, final, 1);
    if (c != OK) {
        char *sentence = strdup(fail_text());
        remove_or_warn(temporary);
        c = fail(c, "%s", sentence ? sentence : "saving failed");
        free(sentence);
        c = target_full(c, run_dir, bytes_needed(s));
    } else
        c = prune(run_dir, final, s->step, keep);
    free(temporary);
    free(final);
    return c;
}
