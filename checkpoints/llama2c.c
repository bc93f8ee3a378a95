/* llama2.c .bin (Karpathy's llama2.c, export.py), in only, f32 little-endian.
 *   version 0: 7 x i32 {C, F, L, H, G, V, T}, V negative when the head is untied | embed | attn_norm[L] | q[L] | k[L] | v[L] | o[L] |
 *              mlp_norm[L] | gate[L] | down[L] | up[L] | final_norm | cos [T, D/2] | sin [T, D/2] | head unless tied
 *   version 1: "ak42" as u32 0x616b3432, i32 1, 7 x i32, u8 tied, zero to 256 | attn_norm[L] | mlp_norm[L] | final_norm | embed |
 *              q[L] | k[L] | v[L] | o[L] | gate[L] | down[L] | up[L] | head unless tied
 * X[L]: the layers one after another. Rotary pairs are interleaved there (2i, 2i+1), canonical is rotate-half (i, i + D/2): rows
 * of q and k are permuted within each head on reading. Version 0 has no magic, so the exact file size is its check. */
#include "llama2c.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "form.h"

#define MAGIC 0x616b3432u

struct llama2c {
    struct checkpoint base;
    int fd;
    struct llama2c_layout layout;
    int64_t *offset; /* [n_tensors] */
    int *rotary;     /* [n_tensors] 1: rows are permuted within heads */
};

/* ---- header ------------------------------------------------------------------------------------------------------- */

static int64_t i32_at(const unsigned char *p)
{
    uint32_t v = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    return (int32_t)v;
}

static enum code fields_read(struct arch *a, const unsigned char *p, const char *where)
{
    static const char *const names[7] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"};
    int64_t v[7];
    for (int i = 0; i < 7; i++) {
        v[i] = i32_at(p + 4 * i);
        if (i == 5 && v[i] < 0)
            v[i] = -v[i];
        if (v[i] < 1)
            return fail(ERR_INPUT, "%s: not a llama2.c model: its %s is %lld", where, names[i], (long long)v[i]);
    }
    if (v[0] % v[3])
        return fail(ERR_INPUT, "%s: not a llama2.c model: its dim %lld is not a multiple of n_heads %lld", where, (long long)v[0], (long long)v[3]);
    enum code c = arch_init(a, v[2]);
    if (c != OK)
        return fail_in(c, "%s", where);
    memcpy(a->family, "llama", sizeof "llama");
    a->C = v[0];
    a->V = a->original_vocab = v[5];
    a->max_positions = v[6];
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->mlp = MLP_SWIGLU;
    a->pos = POS_ROPE;
    a->rope.dims = v[0] / v[3];
    a->rope.theta = 10000;
    a->attn_scale = 1 / sqrt((double)a->rope.dims);
    a->bos = 1;
    a->eos = 2;
    for (int64_t l = 0; l < v[2]; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = v[3];
        b->G = v[4];
        b->D = b->Dv = a->rope.dims;
        b->F = v[1];
    }
    return OK;
}

/* Walks the file's order; each slot stands for all layers at once. T_SLOTS marks the two frequency tables. */
static enum code layout_walk(struct llama2c_layout *layout, const struct arch *a, const char *where)
{
    static const enum tensor_slot v0[LLAMA2C_GROUPS] = {T_EMBED, T_ATTN_NORM_W, T_Q_W, T_K_W, T_V_W, T_O_W, T_MLP_NORM_W, T_GATE_W,
                                                        T_DOWN_W, T_UP_W, T_FINAL_NORM_W, T_SLOTS, T_HEAD_W};
    static const enum tensor_slot v1[LLAMA2C_GROUPS - 1] = {T_ATTN_NORM_W, T_MLP_NORM_W, T_FINAL_NORM_W, T_EMBED, T_Q_W, T_K_W, T_V_W,
                                                            T_O_W, T_GATE_W, T_DOWN_W, T_UP_W, T_HEAD_W};
    const enum tensor_slot *order = layout->version ? v1 : v0;
    int groups = layout->version ? LLAMA2C_GROUPS - 1 : LLAMA2C_GROUPS;
    struct tensor_spec *specs;
    int n;
    TRY(arch_tensors(a, &specs, &n));
    int64_t slot_bytes[T_SLOTS] = {0};
    for (int i = 0; i < n; i++) /* arch_check has bounded the sum */
        slot_bytes[specs[i].slot] += specs[i].n[0] * specs[i].n[1] * 4;
    free(specs);
    int64_t at = layout->version ? LLAMA2C_HEAD : 7 * 4;
    int good = 1;
    for (int g = 0; g < groups && good; g++) {
        int64_t size = 0;
        if (order[g] == T_SLOTS) {
            good = checked_mul(a->max_positions, a->rope.dims, &size) && checked_mul(size, 4, &size); /* two tables of [T, D/2] */
        } else {
            layout->offset[order[g]] = at;
            size = slot_bytes[order[g]];
        }
        good = good && checked_add(at, size, &at);
    }
    layout->bytes = at;
    return good ? OK : fail(ERR_INPUT, "%s: not a llama2.c model: its sizes overflow", where);
}

enum code llama2c_parse(struct arch *a, struct llama2c_layout *layout, const unsigned char *head, size_t n, int64_t file_bytes,
                        const char *where)
{
    memset(a, 0, sizeof *a);
    memset(layout, 0, sizeof *layout);
    layout->version = n >= 4 && (uint32_t)i32_at(head) == MAGIC;
    if (n < (layout->version ? (size_t)LLAMA2C_HEAD : 28u))
        return fail(ERR_INPUT, "%s: %zu bytes are too few for a llama2.c model (truncated?)", where, n);
    if (layout->version && i32_at(head + 4) != 1)
        return fail(ERR_UNSUPPORTED, "%s: version %lld of the llama2.c format is not supported; versions 0 and 1 (f32) are", where,
                    (long long)i32_at(head + 4));
    enum code c = fields_read(a, head + (layout->version ? 8 : 0), where);
    if (c == OK) {
        a->tied = layout->version ? head[36] != 0 : i32_at(head + 20) > 0;
        if (layout->version && i32_at(head + 8 + 20) < 0)
            c = fail(ERR_INPUT, "%s: not a llama2.c model: its vocab_size is negative", where);
    }
    if (c == OK)
        c = arch_check(a, where);
    if (c == OK)
        c = layout_walk(layout, a, where);
    if (c == OK && layout->bytes != file_bytes)
        c = fail(ERR_INPUT, "%s: not a llama2.c model, or damaged: its header asks for %lld bytes, the file has %lld", where,
                 (long long)layout->bytes, (long long)file_bytes);
    if (c != OK)
        arch_free(a);
    return c;
}

/* ---- the form ----------------------------------------------------------------------------------------------------- */

static int llama2c_probe(const char *path)
{
    size_t n = strlen(path);
    return io_file_bytes(path) >= 0 && n > 4 && !strcmp(path + n - 4, ".bin");
}

static enum code parts_open(struct llama2c *m, const char *path)
{
    struct checkpoint *ck = &m->base;
    unsigned char head[LLAMA2C_HEAD];
    struct stat st;
    const char *slash = strrchr(ck->path, '/'), *file = slash ? slash + 1 : ck->path;
    TRY(io_open_regular(path, &m->fd));
    if (fstat(m->fd, &st))
        return fail_errno(path, "stat");
    size_t n = st.st_size < LLAMA2C_HEAD ? (size_t)st.st_size : LLAMA2C_HEAD;
    TRY(io_pread(m->fd, path, head, n, 0));
    TRY(llama2c_parse(&ck->arch, &m->layout, head, n, st.st_size, path));
    TRY(form_add_fileref(ck, file));
    TRY(form_tensors(ck));
    struct tensor_spec *specs;
    int count;
    TRY(arch_tensors(&ck->arch, &specs, &count));
    m->offset = calloc((size_t)count, sizeof *m->offset);
    m->rotary = calloc((size_t)count, sizeof *m->rotary);
    enum code c = m->offset && m->rotary ? OK : fail(ERR_MEMORY, "%s: out of memory", path);
    for (int i = 0; c == OK && i < count; i++) {
        c = form_tensor_set(ck, i, DT_F32, specs[i].name, file);
        int64_t before = specs[i].layer > 0 ? specs[i].layer * ck->tensors[i].bytes : 0;
        m->offset[i] = m->layout.offset[specs[i].slot] + before;
        m->rotary[i] = specs[i].slot == T_Q_W || specs[i].slot == T_K_W;
    }
    free(specs);
    return c;
}

static enum code llama2c_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    (void)options;
    TRY(form_checkpoint_new(ck, sizeof(struct llama2c), &form_llama2c, path));
    struct llama2c *m = (struct llama2c *)*ck;
    m->fd = -1;
    enum code c = parts_open(m, path);
    if (c != OK)
        ckpt_close(*ck);
    return c;
}

/* Canonical rows [row, row+rows) lie within some heads: each head is read whole and its rows are picked. */
static enum code rotary_read(const struct llama2c *m, int i, int64_t row, int64_t rows, char *dst)
{
    int64_t D = m->base.arch.rope.dims, row_bytes = m->base.tensors[i].n[1] * 4;
    char *head = malloc((size_t)(D * row_bytes));
    if (!head)
        return fail(ERR_MEMORY, "%s: out of memory for one head", m->base.path);
    enum code c = OK;
    for (int64_t r = row, loaded = -1; c == OK && r < row + rows; r++) {
        int64_t h = r / D, j = r % D, from = j < D / 2 ? 2 * j : 2 * (j - D / 2) + 1;
        if (h != loaded)
            c = io_pread(m->fd, m->base.path, head, (size_t)(D * row_bytes), m->offset[i] + h * D * row_bytes);
        loaded = h;
        if (c == OK)
            memcpy(dst + (r - row) * row_bytes, head + from * row_bytes, (size_t)row_bytes);
    }
    free(head);
    return c;
}

static enum code llama2c_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst)
{
    const struct llama2c *m = (const struct llama2c *)ck;
    int64_t row_bytes = ck->tensors[i].n[1] * 4;
    if (m->rotary[i])
        return rotary_read(m, i, row, rows, dst);
    return io_pread(m->fd, ck->path, dst, (size_t)(rows * row_bytes), m->offset[i] + row * row_bytes);
}

static void llama2c_close(struct checkpoint *ck)
{
    struct llama2c *m = (struct llama2c *)ck;
    if (m->fd >= 0)
        close(m->fd);
    free(m->offset);
    free(m->rotary);
}

const struct ckpt_form form_llama2c = {
    .name = "llama2.c file",
    .probe = llama2c_probe,
    .open = llama2c_open,
    .read = llama2c_read,
    .close = llama2c_close,
};
