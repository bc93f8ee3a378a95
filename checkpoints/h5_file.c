/* Opening, closing and failing: the life of a native file around libhdf5. See h5.h for the layout. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5_private.h"

static pthread_mutex_t LOCK = PTHREAD_MUTEX_INITIALIZER;

/* No atexit handler (it would touch files after a failure), no error dumps on stderr, no filters loaded from elsewhere. A
 * file-size limit must be an error like a full disk, not a signal. */
static void start(void)
{
    struct sigaction now;
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(0);
    if (!sigaction(SIGXFSZ, NULL, &now) && !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL)
        signal(SIGXFSZ, SIG_IGN);
}

void h5_lock(void)
{
    static int started;
    pthread_mutex_lock(&LOCK);
    if (!started)
        start();
    started = 1;
}

void h5_unlock(void) { pthread_mutex_unlock(&LOCK); }

/* ---- errors ------------------------------------------------------------------------------------------------------- */

static herr_t innermost(unsigned n, const H5E_error2_t *e, void *reason)
{
    (void)n;
    if (e->desc)
        snprintf(reason, 200, "%s", e->desc);
    return 0;
}

enum code h5_io_check(struct h5_file *f) { return f->io.code == OK ? OK : fail(f->io.code, "%s", f->io.sentence); }

enum code h5_fail(struct h5_file *f, enum code code, const char *name, const char *what)
{
    char reason[200] = "";
    TRY(h5_io_check(f));
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, innermost, reason);
    return fail(code, "%s%s%s: %s%s%s%s", f->path, name ? ": " : "", name ? name : "", what, *reason ? " (HDF5: " : "", reason,
                *reason ? ")" : "");
}

/* ---- life --------------------------------------------------------------------------------------------------------- */

static enum code file_new(struct h5_file **out, const char *path, int flags)
{
    struct h5_file *f = calloc(1, sizeof *f);
    if (f)
        f->path = strdup(path);
    if (!f || !f->path) {
        free(f);
        return fail(ERR_MEMORY, "%s: out of memory", path);
    }
    f->id = -1;
    for (int i = 0; i < H5_OPEN_SETS; i++)
        f->sets[i].id = -1;
    f->io.path = f->path;
    f->io.fd = open(path, flags | O_CLOEXEC, 0666);
    if (f->io.fd < 0) {
        enum code c = fail_errno(path, flags & O_CREAT ? "create" : "open");
        free(f->path);
        free(f);
        return c;
    }
    *out = f;
    return OK;
}

static enum code create_locked(struct h5_file *f)
{
    hid_t fcpl = H5Pcreate(H5P_FILE_CREATE), fapl = h5_fapl(&f->io);
    if (fcpl >= 0 && fapl >= 0 && H5Pset_obj_track_times(fcpl, 0) >= 0 && (!f->sealed || H5Pset_userblock(fcpl, H5_USER_BLOCK) >= 0))
        f->id = H5Fcreate(f->path, H5F_ACC_TRUNC, fcpl, fapl);
    enum code c = f->id < 0 ? h5_fail(f, ERR_INTERNAL, NULL, "cannot make an HDF5 file") : h5_io_check(f);
    H5Pclose(fcpl);
    H5Pclose(fapl);
    return c;
}

enum code h5_create(struct h5_file **f, const char *path, int sealed)
{
    *f = NULL;
    TRY(file_new(f, path, O_RDWR | O_CREAT | O_EXCL));
    (*f)->writing = 1;
    (*f)->sealed = sealed;
    h5_lock();
    enum code c = create_locked(*f);
    h5_unlock();
    if (c == OK)
        c = h5_text_put(*f, "/", "schema", H5_SCHEMA);
    if (c != OK) {
        h5_close(*f);
        *f = NULL;
    }
    return c;
}

enum code h5_open(struct h5_file **f, const char *path)
{
    char schema[64];
    *f = NULL;
    TRY(file_new(f, path, O_RDONLY));
    h5_lock();
    hid_t fapl = h5_fapl(&(*f)->io);
    if (fapl >= 0)
        (*f)->id = H5Fopen((*f)->path, H5F_ACC_RDONLY, fapl);
    enum code c = (*f)->id < 0 ? h5_fail(*f, ERR_INPUT, NULL, "not a readable HDF5 file") : OK;
    H5Pclose(fapl);
    h5_unlock();
    if (c == OK)
        c = h5_text_get(*f, "/", "schema", schema, sizeof schema);
    if (c == OK && strcmp(schema, H5_SCHEMA))
        c = fail(ERR_INPUT, "%s: an HDF5 file, but not a native checkpoint: attribute schema is \"%s\", expected \"" H5_SCHEMA "\"", path, schema);
    if (c != OK) {
        h5_close(*f);
        *f = NULL;
    }
    return c;
}

static enum code close_locked(struct h5_file *f)
{
    enum code c = OK;
    h5_sets_close(f);
    if (f->id >= 0 && f->writing && H5Fflush(f->id, H5F_SCOPE_LOCAL) < 0)
        c = h5_fail(f, ERR_IO, NULL, "cannot flush");
    if (f->id >= 0 && H5Fclose(f->id) < 0 && c == OK)
        c = h5_fail(f, ERR_IO, NULL, "cannot close");
    f->id = -1;
    return c == OK ? h5_io_check(f) : c;
}

static enum code seal(struct h5_file *f)
{
    char block[H5_USER_BLOCK], hex[33];
    int64_t bytes;
    TRY(h5_seal_hash(f->io.fd, f->path, &bytes, hex));
    h5_seal_text(block, bytes, hex);
    return io_pwrite(f->io.fd, f->path, block, sizeof block, 0);
}

enum code h5_finish(struct h5_file *f)
{
    h5_lock();
    enum code c = close_locked(f);
    h5_unlock();
    if (c == OK && f->sealed)
        c = seal(f);
    if (c == OK && fsync(f->io.fd))
        c = fail_errno(f->path, "fsync");
    if (close(f->io.fd) && c == OK)
        c = fail_errno(f->path, "close");
    f->io.fd = -1;
    h5_close(f);
    return c;
}

void h5_close(struct h5_file *f)
{
    if (!f)
        return;
    if (f->id >= 0) {
        h5_lock();
        if (f->writing && f->io.code == OK)
            f->io.code = ERR_INTERNAL; /* nothing more is written */
        h5_sets_close(f);
        H5Fclose(f->id);
        h5_unlock();
    }
    if (f->io.fd >= 0)
        close(f->io.fd);
    free(f->path);
    free(f);
}
