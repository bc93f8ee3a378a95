/* Canonical rows and the rows of the files: scatter after gather is the identity byte for byte, for places of every kind; and
 * each gathered element is where family.h says, by the formula written out once more. */
#include "harness.h"

#include "checkpoints/rows.h"

enum { PARTS = 3 };

/* A file tensor made of one to three parts, each a canonical tensor with a place of its own. */
struct sample {
    struct family_place place[PARTS];
    int64_t rows[PARTS], length;
    int parts;
    size_t bytes; /* of an element */
};

static struct sample sample_make(uint64_t seed)
{
    struct sample s = {.bytes = (size_t)2 << random_int(seed, 0, 0, 2)};
    int64_t head = 2 * random_int(seed, 1, 1, 5), H = random_int(seed, 2, 1, 6), kind = random_int(seed, 3, 0, 3);
    int64_t R = random_int(seed, 4, 1, 4), first = 0, group;
    int transposed = random_int(seed, 5, 0, 1) != 0;
    s.length = random_int(seed, 6, 1, 150);
    s.parts = kind == 0 ? 1 : PARTS;
    for (int i = 0; i < s.parts; i++) {
        struct family_place *p = &s.place[i];
        int64_t wide = i == 0 ? R * head : head;
        s.rows[i] = H * wide;
        p->inner = p->stride = s.rows[i];
        p->first = first;
        group = (R + 2) * head;
        if (kind == 1) { /* Q | K | V */
            first += s.rows[i];
        } else if (kind >= 2) { /* [G, R + 2, head]; R = 1: [H, 3, head] */
            p->inner = wide;
            p->stride = group;
            first += wide;
        }
        if (random_int(seed, 7 + (uint64_t)i, 0, 1)) {
            p->head = head;
            p->rotary = 2 * random_int(seed, 10 + (uint64_t)i, 1, head / 2);
        }
        p->nd = 2;
        p->transposed = transposed;
    }
    int64_t total = 0;
    for (int i = 0; i < s.parts; i++)
        total += s.rows[i];
    for (int i = 0; i < s.parts; i++) {
        s.place[i].n[0] = transposed ? s.length : total;
        s.place[i].n[1] = transposed ? total : s.length;
        snprintf(s.place[i].name, sizeof s.place[i].name, "t");
    }
    return s;
}

/* family.h, word for word. */
static int64_t row_of(const struct family_place *p, int64_t r)
{
    if (p->rotary) {
        int64_t h = r / p->head, i = r % p->head, half = p->rotary / 2;
        r = h * p->head + (i < half ? 2 * i : i < p->rotary ? 2 * (i - half) + 1 : i);
    }
    return p->first + (r / p->inner) * p->stride + r % p->inner;
}

static void test_scatter_after_gather(void **state)
{
    (void)state;
    int turned = 0, rotated = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct sample s = sample_make(seed);
        int64_t elements = s.place[0].n[0] * s.place[0].n[1];
        size_t all = (size_t)elements * s.bytes;
        unsigned char *file = malloc(all), *again = malloc(all);
        for (size_t i = 0; i < all; i++)
            file[i] = (unsigned char)random_int(seed + 1000, i, 0, 255);
        memset(again, 0xff, all);
        for (int part = 0; part < s.parts; part++) {
            const struct family_place *p = &s.place[part];
            struct row_map m = row_map_make(p, s.rows[part], s.length);
            turned += m.width > 0;
            rotated += m.rotary > 0;
            assert_int_equal(row_map_scattered(&m), p->transposed || p->rotary);
            int64_t step = random_int(seed, 20, 1, s.rows[part]);
            unsigned char *block = malloc((size_t)(step * s.length) * s.bytes);
            for (int64_t row = 0; row < s.rows[part]; row += step) {
                int64_t now = s.rows[part] - row < step ? s.rows[part] - row : step;
                memset(block, 0xff, (size_t)(step * s.length) * s.bytes);
                rows_gather(block, &m, file, row, now, s.bytes);
                for (int64_t r = 0; r < now; r++)
                    for (int64_t c = 0; c < s.length; c++) {
                        int64_t at = row_of(p, row + r), flat = p->transposed ? c * p->n[1] + at : at * s.length + c;
                        assert_memory_equal(block + (size_t)(r * s.length + c) * s.bytes, file + (size_t)flat * s.bytes, s.bytes);
                    }
                rows_scatter(again, &m, block, row, now, s.bytes);
            }
            free(block);
        }
        assert_memory_equal(file, again, all);
        free(file);
        free(again);
    }
    assert_true(turned > 100 && rotated > 100);
}

/* Runs tell the truth: rows of a run are neighbours, and runs cover everything that is asked. */
static void test_runs(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct sample s = sample_make(seed);
        for (int part = 0; part < s.parts; part++) {
            struct row_map m = row_map_make(&s.place[part], s.rows[part], s.length);
            for (int64_t row = 0, run; row < s.rows[part]; row += run) {
                int64_t at = row_map_at(&m, row, s.rows[part] - row, &run);
                assert_true(run >= 1 && run <= s.rows[part] - row);
                for (int64_t i = 0; i < run; i++)
                    assert_int_equal(at + i, row_of(&s.place[part], row + i));
            }
            int64_t run;
            row_map_at(&m, 0, s.rows[part], &run);
            if (s.place[part].inner == s.place[part].stride && !m.rotary)
                assert_int_equal(run, s.rows[part]); /* one read, not one for every row */
        }
    }
}

static void test_pieces(void **state)
{
    (void)state;
    struct tensor_spec t = {.name = "dec.0.attn.q_norm.w", .nd = 1, .n = {30, 1}};
    struct family_place p;
    char name[160];
    family_place_plain(&p, &t, "q_layernorm.norms.%d.weight");
    p.pieces = 6;
    p.n[0] = p.inner = p.stride = 5;
    struct row_map m = row_map_make(&p, 30, 1);
    assert_int_equal(m.piece, 5);
    family_place_name(&p, 4, name);
    assert_string_equal(name, "q_layernorm.norms.4.weight");
    p.pieces = 0;
    snprintf(p.name, sizeof p.name, "plain");
    family_place_name(&p, 0, name);
    assert_string_equal(name, "plain");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scatter_after_gather),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_pieces),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
