/* What stands between a bare .h5 and libhdf5, whose 1.10 series has known holes: the seal against damage (h5_seal.c), and a walk in a
 * forked child against what a seal cannot tell (a forged or a foreign file). The child opens everything the parent would; if
 * it dies, hangs or finds a structure that we never write (links out of the file, external or virtual storage, unknown
 * filters, absurd chunks), the file is ERR_INPUT. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "h5_private.h"

enum { BLOCK = 1 << 20, DEPTH_MAX = 4, OBJECTS_MAX = 1 << 20, CHUNK_MAX = 64 << 20, BASE_SECONDS = 20, BYTES_PER_SECOND = 10 << 20, MEMORY_MORE = 1 << 30 };

/* ---- walk, in the child ------------------------------------------------------------------------------------------- */

struct walk { const char *path; struct h5_file *f; int data, depth, objects; enum code code; };

static herr_t refuse(struct walk *w, const char *name, const char *what)
{
    if (w->code == OK)
        w->code = fail(what == H5_NO_MEMORY ? ERR_MEMORY : ERR_INPUT, "%s: %s: %s", w->path, name, what);
    return -1;
}

static herr_t check_attribute(hid_t object, const char *name, const H5A_info_t *info, void *data)
{
    (void)info;
    hid_t attr = H5Aopen(object, name, H5P_DEFAULT), type = H5Aget_type(attr);
    H5T_class_t class = H5Tget_class(type);
    int good = attr >= 0 && (class == H5T_STRING || class == H5T_INTEGER || class == H5T_FLOAT) && H5Aget_storage_size(attr) <= 1 << 16;
    H5Tclose(type);
    H5Aclose(attr);
    return good ? 0 : refuse(data, name, "an attribute of a kind that no native checkpoint has");
}

static const char *storage_problem(hid_t set, int64_t *row_bytes, hsize_t n[2])
{
    hid_t type = H5Dget_type(set), space = H5Dget_space(set), dcpl = H5Dget_create_plist(set);
    H5T_class_t class = H5Tget_class(type);
    size_t size = H5Tget_size(type);
    hsize_t chunk[2] = {1, 1};
    unsigned options = 0;
    const char *problem = NULL;
    int nd = H5Sget_simple_extent_ndims(space);
    n[0] = n[1] = 1;
    if ((class != H5T_INTEGER && class != H5T_FLOAT) || size < 1 || size > 8)
        problem = "not an array of plain numbers";
    else if (nd < 1 || nd > 2 || H5Sget_simple_extent_dims(space, n, NULL) < 0)
        problem = "not an array of 1 or 2 dimensions";
    else if (n[1] > (hsize_t)(256 << 20) / size || n[0] > (hsize_t)INT64_MAX / 8 / (n[1] ? n[1] : 1))
        problem = "too large an array";
    else if (H5Pget_external_count(dcpl) != 0)
        problem = "its data lies in another file";
    else if (H5Pget_layout(dcpl) == H5D_CHUNKED) {
        if (H5Pget_chunk(dcpl, 2, chunk) != nd || !chunk[0] || !chunk[1] || chunk[0] > CHUNK_MAX || chunk[1] > CHUNK_MAX ||
            chunk[0] * chunk[1] > CHUNK_MAX / size)
            problem = "chunks of a shape that no native checkpoint has, or of more than 64 MiB";
        else if (H5Pget_chunk_opts(dcpl, &options) < 0 || options)
            problem = "chunk options that no native checkpoint has";
        else
            problem = h5_chunks_problem(set, dcpl, nd, n, chunk, size);
    } else if (H5Pget_layout(dcpl) != H5D_CONTIGUOUS && H5Pget_layout(dcpl) != H5D_COMPACT)
        problem = "an unknown storage layout";
    else if (H5Pget_nfilters(dcpl) != 0)
        problem = "filters without chunks";
    *row_bytes = (int64_t)(n[1] * size);
    H5Pclose(dcpl);
    H5Sclose(space);
    H5Tclose(type);
    return problem;
}

static const char *data_problem(hid_t set, int64_t row_bytes, const hsize_t n[2])
{
    hsize_t rows = row_bytes ? (hsize_t)(4 * BLOCK / row_bytes) : 0;
    rows = rows < 1 ? 1 : rows;
    hid_t space = H5Dget_space(set), type = H5Dget_type(set);
    int nd = H5Sget_simple_extent_ndims(space);
    void *buffer = malloc(rows * (hsize_t)row_bytes + 1);
    const char *problem = buffer ? NULL : H5_NO_MEMORY; /* a row is at most 256 MiB */
    for (hsize_t row = 0; !problem && row < n[0]; row += rows) {
        hsize_t start[2] = {row, 0}, count[2] = {n[0] - row < rows ? n[0] - row : rows, n[1]};
        hid_t memory = H5Screate_simple(nd, count, NULL);
        if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0 || H5Dread(set, type, memory, space, H5P_DEFAULT, buffer) < 0)
            problem = "damaged, its data cannot be read";
        H5Sclose(memory);
    }
    free(buffer);
    H5Tclose(type);
    H5Sclose(space);
    return problem;
}

static herr_t check_dataset(struct walk *w, hid_t set, const char *name)
{
    int64_t row_bytes;
    hsize_t n[2];
    struct stat st;
    const char *problem = storage_problem(set, &row_bytes, n);
    if (fstat(w->f->io.fd, &st)) {
        w->code = fail_errno(w->path, "stat");
        return -1;
    }
    if (!problem && H5Dget_storage_size(set) > (hsize_t)st.st_size)
        problem = "more data than the file has bytes";
    if (!problem && w->data)
        problem = data_problem(set, row_bytes, n);
    return problem ? refuse(w, name, problem) : 0;
}

static herr_t check_link(hid_t group, const char *name, const H5L_info_t *info, void *data)
{
    struct walk *w = data;
    if (info->type != H5L_TYPE_HARD)
        return refuse(w, name, "a link; a native checkpoint has none");
    if (++w->objects > OBJECTS_MAX || w->depth > DEPTH_MAX || strlen(name) >= H5_NAME_MAX)
        return refuse(w, name, "groups too deep, or too many names");
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    hsize_t from = 0;
    herr_t r = object < 0 ? refuse(w, name, "unreadable") : H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, &from, check_attribute, w);
    if (r >= 0) {
        H5I_type_t type = H5Iget_type(object);
        w->depth++;
        if (type == H5I_GROUP)
            r = H5Literate(object, H5_INDEX_NAME, H5_ITER_INC, NULL, check_link, w);
        else
            r = type == H5I_DATASET ? check_dataset(w, object, name) : refuse(w, name, "neither group nor array");
        w->depth--;
    }
    H5Oclose(object);
    return r < 0 ? refuse(w, name, "unreadable") : r;
}

static enum code walk(const char *path, int data)
{
    struct walk w = {.path = path, .data = data, .code = OK};
    TRY(h5_open(&w.f, path));
    h5_lock();
    if (H5Literate(w.f->id, H5_INDEX_NAME, H5_ITER_INC, NULL, check_link, &w) < 0 && w.code == OK)
        w.code = fail(ERR_INPUT, "%s: an HDF5 file that cannot be listed", path);
    h5_unlock();
    h5_close(w.f);
    return w.code;
}

/* ---- the fork ----------------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What the walk may use: processor time by the size of the file (a loop without end is what it is for), and 1 GiB beyond what we hold:
 * the largest row and the largest chunk fit, and a size that lies brings down the child alone. */
static void child_limits(double seconds)
{
    struct itimerval timer = {{0, 0}, {(time_t)seconds, (suseconds_t)((seconds - floor(seconds)) * 1e6)}};
    struct rlimit core = {0, 0}, memory;
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%lld", &pages) == 1 && !getrlimit(RLIMIT_AS, &memory)) {
        rlim_t most = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + MEMORY_MORE;
        memory.rlim_cur = most < memory.rlim_cur ? most : memory.rlim_cur;
        setrlimit(RLIMIT_AS, &memory);
    }
    if (f)
        fclose(f);
    setrlimit(RLIMIT_CORE, &core);
    for (int s = 1; s < 32; s++)
        signal(s, SIG_DFL);
    setitimer(ITIMER_PROF, &timer, NULL); /* ends the process */
}

static _Noreturn void child_main(const char *path, int data, int out, double seconds)
{
    child_limits(seconds);
    int quiet = open("/dev/null", O_WRONLY);
    if (quiet >= 0)
        dup2(quiet, 2);
    h5_unlock(); /* taken by the parent around the fork, so libhdf5 is in a consistent state here */
    h5_driver_report(out);
    enum code c = walk(path, data);
    const char *text = c == OK ? "" : fail_text();
    size_t n = strlen(text);
    if (write(out, text, n) != (ssize_t)n)
        _exit(ERR_INTERNAL);
    _exit((int)c);
}

/* Reads the child's sentence until it ends or time is up. 0: time is up. */
static int listen_to(int in, char *text, size_t size, double until)
{
    size_t used = 0;
    for (;;) {
        double left = until - now();
        struct pollfd p = {.fd = in, .events = POLLIN};
        int r = left > 0 ? poll(&p, 1, (int)(left * 1000) + 1) : 0;
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return 0;
        ssize_t n = read(in, text + used, size - 1 - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || used + (size_t)n >= size - 1)
            return 1;
        used += (size_t)n;
    }
}

enum code h5_walk_forked(const char *path, int data)
{
    char text[1024] = "";
    int64_t bytes = io_file_bytes(path);
    double cpu = 1 + (bytes > 0 ? (double)bytes / BYTES_PER_SECOND : 0), seconds = BASE_SECONDS + 4 * cpu;
    int ends[2], status = 0;
    if (pipe2(ends, O_CLOEXEC))
        return fail_errno(path, "pipe for checking it");
    h5_lock();
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        child_main(path, data, ends[1], cpu);
    }
    h5_unlock();
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return fail_errno(path, "fork a process for checking it");
    }
    int in_time = listen_to(ends[0], text, sizeof text, now() + seconds);
    close(ends[0]);
    if (!in_time)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!in_time)
        return fail(ERR_INPUT, "%s: checking this HDF5 file took more than %.0f s; it is not opened", path, seconds);
    if (WIFEXITED(status) && WEXITSTATUS(status) == OK)
        return OK;
    if (WIFEXITED(status) && *text)
        return fail((enum code)WEXITSTATUS(status), "%s", text);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
        return fail(ERR_INPUT, "%s: checking this HDF5 file took more than %.1f s of processor time; it is not opened", path, cpu);
    return fail(ERR_INPUT, "%s: a damaged or hostile HDF5 file: the process that checked it died (%s %d); it is not opened", path,
                WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

enum code h5_guard(const char *path)
{
    int sealed = h5_sealed(path);
    if (sealed == -2)
        return fail(ERR_IO, "%s", fail_text());
    if (sealed < 0)
        return fail(ERR_INPUT, "%s: neither an HDF5 file nor a native checkpoint (or its first line is damaged)", path);
    if (sealed)
        TRY(h5_seal_verify(path));
    return h5_walk_forked(path, !sealed);
}
