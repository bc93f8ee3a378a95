/* Datasets and attributes of a native file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5_private.h"

enum { CHUNK_BYTES = 4 << 20, CACHE_BYTES = 3 * CHUNK_BYTES, CACHE_SLOTS = 101, CHUNK_COLUMNS = 1 << 18 };

/* The stored type; memory has the same one, so nothing is ever converted by libhdf5 on a little-endian machine. */
static hid_t stored_type(enum dtype t)
{
    switch (t) {
    case DT_F32: return H5T_IEEE_F32LE;
    case DT_F64: return H5T_IEEE_F64LE;
    case DT_BF16:
    case DT_F16:
    case DT_U16: return H5T_STD_U16LE;
    case DT_I64: return H5T_STD_I64LE;
    case DT_I32: return H5T_STD_I32LE;
    case DT_I16: return H5T_STD_I16LE;
    case DT_I8: return H5T_STD_I8LE;
    case DT_U8:
    case DT_BOOL: return H5T_STD_U8LE;
    default: return -1;
    }
}

/* After reading: what failed on the disk, not what seems wrong with the file because of it. Nothing that libhdf5 says after that counts. */
static enum code read_end(struct h5_file *f, enum code c)
{
    TRY(h5_io_check(f));
    return c;
}

/* ---- attributes --------------------------------------------------------------------------------------------------- */

static enum code text_put_locked(struct h5_file *f, const char *name, const char *key, const char *text)
{
    size_t n = strlen(text);
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR), object = H5Oopen(f->id, name, H5P_DEFAULT), attr = -1;
    herr_t bad = H5Tset_size(type, n ? n : 1) < 0 || H5Tset_strpad(type, H5T_STR_NULLPAD) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0;
    if (!bad)
        attr = H5Acreate2(object, key, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bad = attr < 0 || H5Awrite(attr, type, text) < 0;
    enum code c = bad ? h5_fail(f, ERR_IO, name, "cannot write an attribute") : OK;
    H5Aclose(attr);
    H5Oclose(object);
    H5Sclose(space);
    H5Tclose(type);
    return c == OK ? h5_io_check(f) : c;
}

enum code h5_text_put(struct h5_file *f, const char *name, const char *key, const char *text)
{
    h5_lock();
    enum code c = text_put_locked(f, name, key, text);
    h5_unlock();
    return c;
}

/* Fixed-length strings only: what we write. h5py's variable-length ones are refused by name. */
static enum code text_get_locked(struct h5_file *f, const char *name, const char *key, char *text, size_t size)
{
    hid_t object = H5Oopen(f->id, name, H5P_DEFAULT), attr = -1, type = -1, space = -1;
    enum code c = OK;
    text[0] = 0;
    if (object < 0 || H5Aexists(object, key) <= 0)
        goto done;
    attr = H5Aopen(object, key, H5P_DEFAULT);
    type = H5Aget_type(attr);
    space = H5Aget_space(attr);
    if (attr < 0 || type < 0 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) || H5Sget_simple_extent_npoints(space) != 1 ||
        H5Tget_size(type) >= size) {
        c = fail(ERR_INPUT, "%s: %s: attribute \"%s\" must be one fixed-length string of less than %zu bytes", f->path, name, key, size);
        goto done;
    }
    size_t n = H5Tget_size(type);
    if (H5Aread(attr, type, text) < 0)
        c = h5_fail(f, ERR_INPUT, name, "unreadable attribute");
    text[c == OK ? n : 0] = 0;
done:
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(attr);
    H5Oclose(object);
    return c;
}

enum code h5_text_get(struct h5_file *f, const char *name, const char *key, char *text, size_t size)
{
    h5_lock();
    enum code c = read_end(f, text_get_locked(f, name, key, text, size));
    h5_unlock();
    return c;
}

/* ---- names -------------------------------------------------------------------------------------------------------- */

static int has_locked(struct h5_file *f, const char *name)
{
    char part[H5_NAME_MAX];
    for (const char *slash = name; slash; slash++) { /* H5Lexists wants every step of the way to exist */
        slash = strchr(slash, '/');
        size_t n = slash ? (size_t)(slash - name) : strlen(name);
        if (n >= sizeof part)
            return 0;
        memcpy(part, name, n);
        part[n] = 0;
        if (H5Lexists(f->id, part, H5P_DEFAULT) <= 0)
            return 0;
        if (!slash)
            break;
    }
    return 1;
}

/* 1 too where the disk fails: the next call that reads says so. */
int h5_has(struct h5_file *f, const char *name)
{
    h5_lock();
    int has = has_locked(f, name) || f->io.code != OK;
    h5_unlock();
    return has;
}

struct names { char **v; int n, no_memory; };

static herr_t add_name(hid_t group, const char *name, const H5L_info_t *info, void *data)
{
    struct names *list = data;
    (void)group, (void)info;
    char **v = realloc(list->v, (size_t)(list->n + 1) * sizeof *v);
    if (v)
        list->v = v;
    list->no_memory = !v || !(v[list->n] = strdup(name));
    list->n += !list->no_memory;
    return list->no_memory ? -1 : 0;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Sorted here and not by libhdf5: for an order of its own, 1.10 makes a table of a large group, and frees what was never in it when a read fails. */
enum code h5_list(struct h5_file *f, const char *group, char ***names, int *n)
{
    struct names list = {0};
    enum code c = OK;
    h5_lock();
    if (has_locked(f, group) && H5Literate_by_name(f->id, group, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, add_name, &list, H5P_DEFAULT) < 0)
        c = list.no_memory ? fail(ERR_MEMORY, "%s: %s: out of memory to list it", f->path, group) : h5_fail(f, ERR_INPUT, group, "cannot be listed");
    c = read_end(f, c);
    h5_unlock();
    if (c != OK)
        io_names_free(list.v, list.n);
    else if (list.n > 1)
        qsort(list.v, (size_t)list.n, sizeof *list.v, by_name);
    *names = c == OK ? list.v : NULL;
    *n = c == OK ? list.n : 0;
    return c;
}

/* ---- datasets ----------------------------------------------------------------------------------------------------- */

void h5_sets_close(struct h5_file *f)
{
    for (int i = 0; i < H5_OPEN_SETS; i++) {
        if (f->sets[i].id >= 0)
            H5Dclose(f->sets[i].id);
        f->sets[i].id = -1;
    }
}

hid_t h5_set_open(struct h5_file *f, const char *name)
{
    struct h5_set *oldest = &f->sets[0];
    for (int i = 0; i < H5_OPEN_SETS; i++) {
        struct h5_set *s = &f->sets[i];
        if (s->id >= 0 && !strcmp(s->name, name)) {
            s->used = ++f->clock;
            return s->id;
        }
        if (s->id < 0 || (oldest->id >= 0 && s->used < oldest->used))
            oldest = s;
    }
    if (strlen(name) >= sizeof oldest->name)
        return -1;
    if (oldest->id >= 0 && H5Dclose(oldest->id) < 0)
        return oldest->id = -1;
    hid_t dapl = H5Pcreate(H5P_DATASET_ACCESS);
    H5Pset_chunk_cache(dapl, CACHE_SLOTS, CACHE_BYTES, 1.0);
    oldest->id = H5Dopen2(f->id, name, dapl);
    H5Pclose(dapl);
    oldest->used = ++f->clock;
    snprintf(oldest->name, sizeof oldest->name, "%s", name);
    return oldest->id;
}

/* Whole rows of about CHUNK_BYTES; a very long row is cut. */
static void chunk_shape(const struct h5_array *a, hsize_t chunk[2])
{
    int64_t columns = a->nd == 2 ? a->n[1] : 1;
    chunk[1] = (hsize_t)(columns < CHUNK_COLUMNS ? columns : CHUNK_COLUMNS);
    int64_t rows = CHUNK_BYTES / ((int64_t)chunk[1] * (int64_t)dtype_bytes(a->dtype));
    chunk[0] = (hsize_t)(rows < 1 ? 1 : rows > a->n[0] ? a->n[0] : rows);
}

/* The groups on the way, by hand: those that libhdf5 makes itself carry the time of day, and equal content must be equal bytes. */
static enum code groups_make(struct h5_file *f, const char *name)
{
    char part[H5_NAME_MAX];
    for (const char *slash = strchr(name, '/'); slash; slash = strchr(slash + 1, '/')) {
        CHECK((size_t)(slash - name) < sizeof part);
        memcpy(part, name, (size_t)(slash - name));
        part[slash - name] = 0;
        if (H5Lexists(f->id, part, H5P_DEFAULT) > 0)
            continue;
        hid_t gcpl = H5Pcreate(H5P_GROUP_CREATE), group = -1;
        if (H5Pset_obj_track_times(gcpl, 0) >= 0)
            group = H5Gcreate2(f->id, part, H5P_DEFAULT, gcpl, H5P_DEFAULT);
        enum code c = group < 0 ? h5_fail(f, ERR_IO, part, "cannot make a group") : OK;
        H5Gclose(group);
        H5Pclose(gcpl);
        TRY(c);
    }
    return OK;
}

static enum code create_locked(struct h5_file *f, const char *name, const struct h5_array *a, int compress)
{
    hsize_t n[2] = {(hsize_t)a->n[0], (hsize_t)a->n[1]}, chunk[2];
    TRY(groups_make(f, name));
    hid_t space = H5Screate_simple(a->nd, n, NULL), set = -1, dcpl = H5Pcreate(H5P_DATASET_CREATE);
    /* Filled at once: else libhdf5 writes whatever its memory held behind the last rows. */
    herr_t bad = H5Pset_obj_track_times(dcpl, 0) < 0 || H5Pset_fill_time(dcpl, H5D_FILL_TIME_ALLOC) < 0;
    if (a->n[0] > 0) { /* an empty companion has no chunks */
        chunk_shape(a, chunk);
        bad |= H5Pset_chunk(dcpl, a->nd, chunk) < 0;
        if (compress)
            bad |= H5Pset_shuffle(dcpl) < 0 || H5Pset_deflate(dcpl, 1) < 0;
        bad |= H5Pset_fletcher32(dcpl) < 0;
    }
    if (!bad)
        set = H5Dcreate2(f->id, name, stored_type(a->dtype), space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
    enum code c = set < 0 ? h5_fail(f, ERR_IO, name, "cannot make a dataset") : OK;
    H5Dclose(set);
    H5Pclose(dcpl);
    H5Sclose(space);
    return c == OK ? text_put_locked(f, name, "dtype", dtype_name(a->dtype)) : c;
}

enum code h5_array_create(struct h5_file *f, const char *name, const struct h5_array *a, int compress)
{
    CHECK((a->nd == 1 || a->nd == 2) && stored_type(a->dtype) >= 0);
    h5_lock();
    enum code c = create_locked(f, name, a, compress);
    h5_unlock();
    return c;
}

static enum code info_locked(struct h5_file *f, const char *name, struct h5_array *a)
{
    char text[32];
    hsize_t n[2] = {0, 1};
    hid_t set = h5_set_open(f, name), space = H5Dget_space(set), type = H5Dget_type(set);
    enum code c = OK;
    if (set < 0 || space < 0 || type < 0)
        c = h5_fail(f, ERR_INPUT, name, "no readable dataset");
    if (c == OK) {
        a->nd = H5Sget_simple_extent_ndims(space);
        if (a->nd < 1 || a->nd > 2 || H5Sget_simple_extent_dims(space, n, NULL) < 0 || n[0] > INT64_MAX || n[1] > INT64_MAX)
            c = fail(ERR_INPUT, "%s: %s: expected an array of 1 or 2 dimensions, found %d", f->path, name, a->nd);
    }
    a->n[0] = (int64_t)n[0];
    a->n[1] = (int64_t)n[1];
    if (c == OK)
        c = text_get_locked(f, name, "dtype", text, sizeof text);
    if (c == OK) {
        a->dtype = dtype_parse(text);
        if (a->dtype == DT_NONE || H5Tequal(type, stored_type(a->dtype)) <= 0)
            c = fail(ERR_INPUT, "%s: %s: attribute dtype \"%s\" does not fit the stored type", f->path, name, text);
    }
    H5Tclose(type);
    H5Sclose(space);
    return c;
}

enum code h5_array_info(struct h5_file *f, const char *name, struct h5_array *a)
{
    h5_lock();
    enum code c = read_end(f, info_locked(f, name, a));
    h5_unlock();
    return c;
}

static enum code rows_locked(struct h5_file *f, const char *name, const struct h5_array *a, int64_t row, int64_t rows, void *p, int write)
{
    hsize_t start[2] = {(hsize_t)row, 0}, count[2] = {(hsize_t)rows, (hsize_t)a->n[1]};
    hid_t set = h5_set_open(f, name), space = H5Dget_space(set), memory = H5Screate_simple(a->nd, count, NULL), type = stored_type(a->dtype);
    herr_t bad = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0;
    if (!bad)
        bad = (write ? H5Dwrite(set, type, memory, space, H5P_DEFAULT, p) : H5Dread(set, type, memory, space, H5P_DEFAULT, p)) < 0;
    enum code c = !bad ? OK : write ? h5_fail(f, ERR_IO, name, "cannot be written") : h5_fail(f, ERR_INPUT, name, "damaged, its data cannot be read");
    H5Sclose(memory);
    H5Sclose(space);
    return c == OK ? h5_io_check(f) : c;
}

enum code h5_rows_write(struct h5_file *f, const char *name, const struct h5_array *a, int64_t row, int64_t rows, const void *src)
{
    if (rows == 0)
        return OK;
    h5_lock();
    enum code c = rows_locked(f, name, a, row, rows, (void *)(uintptr_t)src, 1);
    h5_unlock();
    return c;
}

enum code h5_rows_read(struct h5_file *f, const char *name, const struct h5_array *a, int64_t row, int64_t rows, void *dst)
{
    if (rows == 0)
        return OK;
    h5_lock();
    enum code c = rows_locked(f, name, a, row, rows, dst, 0);
    h5_unlock();
    return c;
}

enum code h5_bytes_put(struct h5_file *f, const char *name, const void *bytes, size_t n)
{
    struct h5_array a = {DT_U8, 1, {(int64_t)n, 1}};
    TRY(h5_array_create(f, name, &a, 0));
    return h5_rows_write(f, name, &a, 0, a.n[0], bytes);
}

enum code h5_bytes_get(struct h5_file *f, const char *name, size_t limit, char **bytes, size_t *n)
{
    struct h5_array a;
    TRY(h5_array_info(f, name, &a));
    if (a.dtype != DT_U8 || a.nd != 1 || (uint64_t)a.n[0] > limit)
        return fail(ERR_INPUT, "%s: %s: expected at most %zu bytes (u8, one dimension)", f->path, name, limit);
    *n = (size_t)a.n[0];
    *bytes = malloc(*n + 1);
    if (!*bytes)
        return fail(ERR_MEMORY, "%s: %s: out of memory for %zu bytes", f->path, name, *n);
    (*bytes)[*n] = 0;
    enum code c = h5_rows_read(f, name, &a, 0, a.n[0], *bytes);
    if (c != OK) {
        free(*bytes);
        *bytes = NULL;
    }
    return c;
}
