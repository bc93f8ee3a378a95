/* A virtual file driver for libhdf5: pread and pwrite on a descriptor we own. Two reasons.
 * (1) A failed write makes libhdf5 1.10 fail to close the file, keep its objects and sometimes crash at exit. Here a
 *     failure is recorded (errno's sentence in struct h5_io), later writes are swallowed and libhdf5 is told that all went
 *     well, so it always closes cleanly; the caller looks at the record after every call and throws the file away.
 * (2) Short writes, EINTR and errno are handled as everywhere else in the toolkit, without file locks (NFS, Lustre). */
#include <string.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "h5_private.h"
#if H5_VERSION_GE(1, 13, 2)
#include <H5FDdevelop.h>
#endif

struct file {
    H5FD_t pub; /* libhdf5's part, first */
    struct h5_io *io;
    haddr_t eoa, eof;
};

#define ADDRESS_MAX ((haddr_t)INT64_MAX)

static int report_to = -1;

void h5_driver_report(int fd) { report_to = fd; }

static void record(struct h5_io *io, enum code code)
{
    if (io->code != OK)
        return;
    if (report_to >= 0) {
        size_t n = strlen(fail_text());
        _exit(write(report_to, fail_text(), n) == (ssize_t)n ? (int)code : ERR_INTERNAL);
    }
    io->code = code;
    snprintf(io->sentence, sizeof io->sentence, "%s", fail_text());
}

static void record_memory(struct h5_io *io) { record(io, fail(ERR_MEMORY, "%s: no memory to open it", io->path)); }

static void *fapl_copy(const void *fapl)
{
    void *copy = malloc(sizeof(struct h5_io *));
    if (copy)
        memcpy(copy, fapl, sizeof(struct h5_io *));
    else
        record_memory(*(struct h5_io *const *)fapl);
    return copy;
}

static herr_t fapl_free(void *fapl)
{
    free(fapl);
    return 0;
}

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t fapl, haddr_t maxaddr)
{
    (void)name, (void)flags, (void)maxaddr;
    struct h5_io *const *io = H5Pget_driver_info(fapl);
    struct stat st;
    struct file *f = calloc(1, sizeof *f);
    if (io && !f)
        record_memory(*io);
    int bad = !io || !f || fstat((*io)->fd, &st);
    if (bad && io && f)
        record(*io, fail_errno((*io)->path, "stat"));
    if (bad) {
        free(f);
        return NULL;
    }
    f->io = *io;
    f->eof = (haddr_t)st.st_size;
    return &f->pub;
}

static herr_t driver_close(H5FD_t *file)
{
    free(file);
    return 0;
}

static int driver_cmp(const H5FD_t *a, const H5FD_t *b)
{
    const struct h5_io *x = ((const struct file *)a)->io, *y = ((const struct file *)b)->io;
    return (x > y) - (x < y);
}

static herr_t driver_query(const H5FD_t *file, unsigned long *flags)
{
    (void)file;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE | H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

static haddr_t get_eoa(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const struct file *)file)->eoa;
}

static herr_t set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t addr)
{
    (void)type;
    ((struct file *)file)->eoa = addr;
    return 0;
}

static haddr_t get_eof(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const struct file *)file)->eof;
}

/* Bytes beyond the end of the file read as zeros, as libhdf5 expects of a driver. */
static herr_t driver_read(H5FD_t *file, H5FD_mem_t type, hid_t dxpl, haddr_t addr, size_t size, void *buffer)
{
    struct file *f = (struct file *)file;
    (void)type, (void)dxpl;
    if (addr > ADDRESS_MAX || size > ADDRESS_MAX - addr)
        return -1;
    size_t there = addr >= f->eof ? 0 : f->eof - addr < size ? (size_t)(f->eof - addr) : size;
    memset((char *)buffer + there, 0, size - there);
    if (f->io->code != OK)
        return -1;
    enum code c = io_pread(f->io->fd, f->io->path, buffer, there, (int64_t)addr);
    if (c == OK)
        return 0;
    record(f->io, c);
    return -1;
}

static herr_t driver_write(H5FD_t *file, H5FD_mem_t type, hid_t dxpl, haddr_t addr, size_t size, const void *buffer)
{
    struct file *f = (struct file *)file;
    (void)type, (void)dxpl;
    if (f->io->code == OK) {
        enum code c = io_pwrite(f->io->fd, f->io->path, buffer, size, (int64_t)addr);
        if (c != OK)
            record(f->io, c);
    }
    if (addr + size > f->eof)
        f->eof = addr + size;
    return 0;
}

static herr_t driver_truncate(H5FD_t *file, hid_t dxpl, hbool_t closing)
{
    struct file *f = (struct file *)file;
    (void)dxpl, (void)closing;
    if (f->eoa == f->eof || f->io->code != OK)
        return 0;
    if (ftruncate(f->io->fd, (off_t)f->eoa))
        record(f->io, fail_errno(f->io->path, "set the size"));
    f->eof = f->eoa;
    return 0;
}

static const H5FD_class_t DRIVER = {
#ifdef H5FD_CLASS_VERSION
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)511,
#endif
    .name = "gqakit",
    .maxaddr = ADDRESS_MAX,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(struct h5_io *),
    .fapl_copy = fapl_copy,
    .fapl_free = fapl_free,
    .open = driver_open,
    .close = driver_close,
    .cmp = driver_cmp,
    .query = driver_query,
    .get_eoa = get_eoa,
    .set_eoa = set_eoa,
    .get_eof = get_eof,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

hid_t h5_driver(void)
{
    static hid_t id = -1;
    if (id < 0)
        id = H5FDregister(&DRIVER);
    return id;
}

hid_t h5_fapl(struct h5_io *io)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    if (fapl < 0)
        return fapl;
    if (H5Pset_driver(fapl, h5_driver(), &io) < 0 || H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) < 0 ||
        H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_V18) < 0) {
        H5Pclose(fapl);
        return -1;
    }
    return fapl;
}
