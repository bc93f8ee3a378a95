/* gqa-convert --verify: whatever recorded its hashes is hashed again. */
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "h5.h"
#include "step.h"

static enum code run_verify(const char *path, int *files_checked)
{
    struct step_name *list;
    int n;
    enum code c = OK;
    TRY(step_names(path, &list, &n));
    for (int i = 0; c == OK && i < n; i++) {
        char *dir = io_join(path, list[i].name);
        c = dir ? manifest_verify(dir, NULL, files_checked) : fail(ERR_MEMORY, "%s: out of memory", path);
        free(dir);
    }
    free(list);
    return c;
}

enum code ckpt_verify(const char *path, int *files_checked)
{
    *files_checked = 0;
    if (!io_exists(path))
        return fail(ERR_INPUT, "%s: no such file or directory", path);
    if (step_is_dir(path)) {
        char *copy = strdup(path);
        if (!copy)
            return fail(ERR_MEMORY, "%s: out of memory", path);
        for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/';)
            copy[--n] = 0;
        enum code c = manifest_verify(copy, NULL, files_checked);
        free(copy);
        return c;
    }
    int run = step_is_run_dir(path);
    if (run < 0)
        return ERR_IO;
    if (run)
        return run_verify(path, files_checked);
    if (io_is_dir(path))
        return provenance_verify(path, files_checked);
    switch (h5_sealed(path)) {
    case 1:
        TRY(h5_seal_verify(path));
        *files_checked = 1;
        return OK;
    case 0: return fail(ERR_INPUT, "%s: a plain HDF5 file that records no hash: there is nothing to verify against", path);
    case -2: return fail(ERR_IO, "%s", fail_text());
    default: return fail(ERR_INPUT, "%s: not a checkpoint that records hashes (or its first line is damaged): there is nothing to verify against", path);
    }
}
