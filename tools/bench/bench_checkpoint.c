/* Copying a Hugging Face directory through the checkpoint layer, against cp on the same directory.
 *   bench_checkpoint [MEGABYTES [ROUNDS [DIR]]]
 * The source is random weights written here. Both copies end with fsync of every file; they alternate within one run, the
 * source is warm. Printed: seconds and GB/s of each, the ratio of the medians (1 = as fast as cp), and the peak memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"

#define BLOCK CKPT_BLOCK_BYTES

static enum code arch_make(struct arch *a, int64_t bytes)
{
    enum { C = 1024, F = 2816, V = 32000 };
    int64_t layer = (4 * (int64_t)C * C + 3 * (int64_t)C * F) * 2, L = bytes / layer;
    TRY(arch_init(a, L < 1 ? 1 : L));
    memcpy(a->family, "llama", sizeof "llama");
    a->C = C;
    a->V = a->original_vocab = V;
    a->max_positions = 2048;
    a->norm_eps = 1e-5;
    a->pos = POS_ROPE;
    a->rope.dims = 64;
    a->rope.theta = 10000;
    a->tied = 1;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l] = (struct arch_block){.H = 16, .G = 16, .D = 64, .Dv = 64, .F = F};
    return OK;
}

static enum code make(const char *path, int64_t bytes, uint32_t *noise)
{
    struct arch a;
    struct ckpt_writer *w;
    TRY(arch_make(&a, bytes));
    struct ckpt_target target = {.path = path, .arch = &a, .dtype = DT_BF16, .shard_bytes = (int64_t)1 << 30, .force = 1};
    enum code c = ckpt_create(&w, &target);
    for (int i = 0; c == OK && i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t step = BLOCK / (t->n[1] * 2);
        for (int64_t r = 0; c == OK && r < t->n[0]; r += step)
            c = ckpt_write(w, t, r, t->n[0] - r < step ? t->n[0] - r : step, noise, DT_BF16);
    }
    arch_free(&a);
    return c == OK ? ckpt_commit(w) : c;
}

static enum code copy(const char *from, const char *to, char *buffer)
{
    struct checkpoint *ck;
    struct ckpt_writer *w;
    TRY(ckpt_open(&ck, from, NULL));
    struct ckpt_target target = {.path = to, .arch = ckpt_arch(ck), .source = ck};
    enum code c = ckpt_create(&w, &target);
    for (int i = 0; c == OK && i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i), *s = ckpt_find(ck, t->name);
        int64_t step = BLOCK / (t->n[1] * 2);
        for (int64_t r = 0; c == OK && r < t->n[0]; r += step) {
            int64_t rows = t->n[0] - r < step ? t->n[0] - r : step;
            c = ckpt_read(ck, s, r, rows, buffer, DT_NONE);
            if (c == OK)
                c = ckpt_write(w, t, r, rows, buffer, t->dtype);
        }
    }
    if (c == OK)
        c = ckpt_commit(w);
    ckpt_close(ck);
    return c;
}

static int cp(const char *from, const char *to)
{
    char command[8192];
    snprintf(command, sizeof command, "cp -r '%s' '%s' && sync '%s'/*", from, to, to);
    return system(command);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    int64_t bytes = (argc > 1 ? atoll(argv[1]) : 256) * 1000000;
    int rounds = argc > 2 ? atoi(argv[2]) : 3;
    const char *dir = argc > 3 ? argv[3] : getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char from[2048], to[2048];
    double ours[32], theirs[32];
    if (rounds < 1 || rounds > 32)
        rounds = 3;
    snprintf(from, sizeof from, "%s/gqakit-bench-%ld-source", dir, (long)getpid());
    snprintf(to, sizeof to, "%s/gqakit-bench-%ld-copy", dir, (long)getpid());
    uint32_t *block = malloc((size_t)BLOCK);
    CHECK(block);
    for (int64_t i = 0; i < BLOCK / 4; i++)
        block[i] = random_philox(1, STREAM_TEST, 0, (uint64_t)i).v[0] & 0xbfffbfffu; /* finite bf16 pairs */
    enum code c = make(from, bytes, block);
    if (c == OK && cp(from, to)) /* once unmeasured: warms the source */
        c = fail(ERR_IO, "%s: cp failed", to);
    for (int r = 0; c == OK && r < rounds; r++) {
        c = io_remove_tree(to);
        sync();
        double start = host_seconds();
        if (c == OK)
            c = copy(from, to, (char *)block);
        ours[r] = host_seconds() - start;
        if (c == OK)
            c = io_remove_tree(to);
        sync();
        start = host_seconds();
        if (c == OK && cp(from, to))
            c = fail(ERR_IO, "%s: cp failed", to);
        theirs[r] = host_seconds() - start;
        if (c == OK)
            printf("round %d: checkpoint %.2f s, cp + fsync %.2f s\n", r + 1, ours[r], theirs[r]);
        fflush(stdout);
    }
    if (c == OK) {
        qsort(ours, (size_t)rounds, sizeof *ours, by_value);
        qsort(theirs, (size_t)rounds, sizeof *theirs, by_value);
        double a = ours[rounds / 2], b = theirs[rounds / 2], gb = (double)bytes / 1e9;
        printf("median: checkpoint %.2f GB/s, cp + fsync %.2f GB/s, ratio %.2f, peak memory %lld MiB\n", gb / a, gb / b, b / a,
               (long long)(host_peak_rss() >> 20));
    }
    if (io_remove_tree(from) != OK || io_remove_tree(to) != OK)
        log_warn("%s", fail_text());
    free(block);
    return c == OK ? 0 : fail_exit("bench_checkpoint", c);
}
