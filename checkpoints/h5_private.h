/* Shared by h5_*.c: the open file and the lock. Only these files include hdf5.h. */
#ifndef GQAKIT_CHECKPOINTS_H5_PRIVATE_H
#define GQAKIT_CHECKPOINTS_H5_PRIVATE_H

#include <hdf5.h>
#include <limits.h>

#include "h5.h"

/* What the file driver (h5_driver.c) works on. The descriptor is ours, libhdf5 only borrows it. */
struct h5_io {
    int fd;
    const char *path;
    enum code code;      /* first failure of a read or write, with its sentence */
    char sentence[1024];
};

enum { H5_OPEN_SETS = 4 };

struct h5_file {
    hid_t id;
    struct h5_io io;
    char *path;
    int writing, sealed;
    struct h5_set { char name[H5_NAME_MAX]; hid_t id; uint64_t used; } sets[H5_OPEN_SETS]; /* recently used datasets keep their chunk cache */
    uint64_t clock;
};

void h5_lock(void);   /* also starts the library on the first call */
void h5_unlock(void);
hid_t h5_driver(void); /* registered id; below 0 on failure */
hid_t h5_fapl(struct h5_io *io);
/* In the process that checks a file: the first read that fails is its answer, written there, and its end. (After one, libhdf5 1.10 may crash.) */
void h5_driver_report(int fd);
/* The sentence for a failed HDF5 call: the system's if the driver saw one, else `code`, WHAT and libhdf5's innermost reason. */
enum code h5_fail(struct h5_file *f, enum code code, const char *name, const char *what) MUST_USE;
/* OK, or the driver's failure: libhdf5 was told that all went well (see h5_driver.c). */
enum code h5_io_check(struct h5_file *f) MUST_USE;
hid_t h5_set_open(struct h5_file *f, const char *name); /* cached; do not close */
void h5_sets_close(struct h5_file *f);
extern const char H5_NO_MEMORY[]; /* a problem that is not the file's; told by its address */
/* h5_chunks.c. What is wrong with a dataset's chunks or filters before any is read; NULL: nothing. n and chunk [nd] in elements of `size` bytes. */
const char *h5_chunks_problem(hid_t set, hid_t dcpl, int nd, const hsize_t n[2], const hsize_t chunk[2], size_t size);

#endif
