/* Makes a Hugging Face directory with random weights, of any size, in LLaMA layout or in that of a given config.json of any family:
 * the input of conversion benchmarks and tests.
 * Values come from one block of normals that is repeated: they are realistic for I/O and hashing, and of no use for language.
 *
 *   make_checkpoint DST --hidden 2048 --layers 16 --heads 16 --kv-heads 16 --mlp 5632 --vocab 32000 --dtype bf16 --shard-size 500
 *   make_checkpoint DST --config config.json --dtype bf16 */
#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"
#include "checkpoints/checkpoint.h"

struct options { const char *config; int64_t C, L, H, G, F, V, P, shard_mb, seed; double sd; int dtype, untied; };
#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--config", CLI_STR, config, "FILE", "a config.json of any family: its layout and sizes, instead of the flags below"),
    FLAG("--hidden", CLI_INT, C, "C", "model width (default 768)"),
    FLAG("--layers", CLI_INT, L, "L", "default 12"),
    FLAG("--heads", CLI_INT, H, "H", "query heads (default 12)"),
    FLAG("--kv-heads", CLI_INT, G, "G", "key/value heads (default: as --heads)"),
    FLAG("--mlp", CLI_INT, F, "F", "MLP width (default 2048)"),
    FLAG("--vocab", CLI_INT, V, "V", "default 32000"),
    FLAG("--positions", CLI_INT, P, "P", "default 4096"),
    FLAG("--untied", CLI_SET, untied, NULL, "a separate output table"),
    FLAG("--dtype", CLI_CHOICE, dtype, "f32|bf16|f16", "default f32"),
    FLAG("--sd", CLI_FLOAT, sd, "X", "standard deviation of the weights (default 0.02)"),
    FLAG("--seed", CLI_INT, seed, "N", "default 0"),
    FLAG("--shard-size", CLI_INT, shard_mb, "MB", "start a new file beyond this (default: 5000)"),
};
static const struct cli cli = { "make_checkpoint", "DST [flags]", "Random weights in LLaMA layout, or in that of a config.json.", flags, (int)(sizeof flags / sizeof flags[0]), 1, 1 };

static const enum dtype TYPES[] = { DT_F32, DT_BF16, DT_F16 };

static enum code fill_arch(struct arch *a, const struct options *o)
{
    TRY(arch_init(a, o->L));
    snprintf(a->family, sizeof a->family, "llama");
    a->C = o->C;
    a->V = a->original_vocab = o->V;
    a->max_positions = o->P;
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->pos = POS_ROPE;
    a->rope.dims = o->C / o->H;
    a->rope.theta = 10000;
    a->mlp = MLP_SWIGLU;
    a->attn_scale = 1 / __builtin_sqrt((double)(o->C / o->H));
    a->tied = !o->untied;
    a->dtype = TYPES[o->dtype];
    a->bos = 1;
    a->eos = 2;
    for (int64_t l = 0; l < o->L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = o->H;
        b->G = o->G;
        b->D = b->Dv = o->C / o->H;
        b->F = o->F;
    }
    return arch_check(a, "make_checkpoint");
}

static enum code read_arch(struct arch *a, const char *path)
{
    char *bytes;
    size_t n;
    TRY(io_read_all(path, 1 << 20, &bytes, &n));
    enum code c = arch_from_config_json(a, bytes, n, path);
    free(bytes);
    return c;
}

#define BLOCK 1048576

static enum code write_tensors(struct ckpt_writer *w, const float *block)
{
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t width = t->nd == 2 ? t->n[1] : 1, step = BLOCK / width;
        CHECK(step > 0);
        for (int64_t row = 0; row < t->n[0]; row += step) {
            int64_t rows = t->n[0] - row < step ? t->n[0] - row : step;
            TRY(ckpt_write(w, t, row, rows, block + (i * 977 + row) % BLOCK, DT_F32));
        }
    }
    return OK;
}

static enum code run(int argc, char **argv)
{
    struct options o = { .C = 768, .L = 12, .H = 12, .F = 2048, .V = 32000, .P = 4096, .sd = 0.02 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    o.G = o.G ? o.G : o.H;
    struct arch a = { 0 };
    TRY(o.config ? read_arch(&a, o.config) : fill_arch(&a, &o));
    float *block = malloc(2 * BLOCK * sizeof *block);
    if (!block)
        return fail(ERR_MEMORY, "out of memory");
    random_normal_f32(block, 2 * BLOCK, 0, (float)o.sd, (uint64_t)o.seed, STREAM_TEST, 0);
    struct ckpt_target target = { .path = words.v[0], .arch = &a, .dtype = TYPES[o.dtype], .shard_bytes = o.shard_mb * 1000000, .force = 1 };
    struct ckpt_writer *w = NULL;
    enum code c = ckpt_create(&w, &target);
    if (c == OK) {
        c = write_tensors(w, block);
        if (c == OK)
            c = ckpt_commit(w);
        else
            ckpt_abandon(w);
    }
    free(block);
    arch_free(&a);
    return c;
}

int main(int argc, char **argv) { return fail_exit("make_checkpoint", run(argc, argv)); }
