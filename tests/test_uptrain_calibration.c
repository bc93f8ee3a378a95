/* gqa.calibration runs over sequences of the run's sequence_len, so that the merge is made for the positions that training and evaluation
 * see; a longer run leaves the length to gqa-convert. */
#include "data/data.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

enum { TOKENS = 5000 };

static char *config(void)
{
    char text[2000], *model = temp_path("source"), *tokens = temp_path("tokens.bin");
    int32_t ids[TOKENS];
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    a.eos = -1;
    a.max_positions = 2048;
    small_write(model, &a, 7, 1, NULL);
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (int32_t)random_int(3, i, 0, 36);
    assert_ok(tokens_write(tokens, ids, TOKENS, 37, -1, -1, NULL));
    int n = snprintf(text, sizeof text, "model: {path: %s}\ngqa: {num_key_value_heads: 3, method: svd, calibration: %s, calibration_tokens: 1200}\n"
                     "data: {train: [%s]}\nsequence_len: 40\nmax_steps: 0\nthreads: 1\noutput_dir: %s/unset\n", model, tokens, tokens, temp_dir());
    temp_write("calibration.yaml", text, (size_t)n);
    arch_free(&a);
    free(model);
    free(tokens);
    return temp_path("calibration.yaml");
}

/* What the conversion says that it ran over; NULL when it ran over nothing. */
static json_t *calibration_of(const char *out)
{
    json_t *facts = NULL;
    char *path = runs_path(out, "converted/PROVENANCE.json");
    assert_ok(json_read_file(path, 1 << 20, &facts));
    json_t *calibration = json_incref(json_object_get(json_object_get(facts, "conversion"), "calibration"));
    json_decref(facts);
    free(path);
    return calibration;
}

static void runs_length(void **state)
{
    (void)state;
    static const struct { const char *asked; int length; } table[] = {
        {"sequence_len=40", 40}, {"sequence_len=17", 17}, {"sequence_len=1024", 1024}, {"sequence_len=1025", (TOKENS - 1) / 10}}; /* the last: gqa-convert's own */
    char *yaml = config(), out[24], dir[600];
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        snprintf(out, sizeof out, "length%zu", i);
        snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
        program_ok(UPTRAIN(yaml, dir, table[i].asked));
        json_t *calibration = calibration_of(out);
        assert_true(json_number_at(calibration, "sequence_length") == table[i].length);
        json_decref(calibration);
    }
    free(yaml);
}

/* Another length is another conversion: nothing is trained yet, so it is made again. Without a calibration it is the same one. */
static void another_length_another_conversion(void **state)
{
    (void)state;
    char *yaml = config(), dir[600];
    snprintf(dir, sizeof dir, "output_dir=%s/again", temp_dir());
    struct child c = UPTRAIN(yaml, dir, "sequence_len=40");
    runs_expect(&c, 0, "converting");
    c = UPTRAIN(yaml, dir, "sequence_len=40");
    runs_expect(&c, 0, "already converted");
    c = UPTRAIN(yaml, dir, "sequence_len=24", "resume=never");
    runs_expect(&c, 0, "converting");
    c = UPTRAIN(yaml, "gqa.calibration=/nonexistent/text.txt", "--plan");
    runs_expect(&c, 5, "gqa.calibration: /nonexistent/text.txt");
    free(yaml);
    char text[1200], *model = temp_path("source"), *tokens = temp_path("tokens.bin"), *plain = temp_path("plain.yaml");
    int n = snprintf(text, sizeof text, "model: {path: %s}\ngqa: {num_key_value_heads: 3}\ndata: {train: [%s]}\nsequence_len: 40\nmax_steps: 0\nthreads: 1\n"
                     "output_dir: %s/plain\n", model, tokens, temp_dir());
    temp_write("plain.yaml", text, (size_t)n);
    c = UPTRAIN(plain);
    runs_expect(&c, 0, "converting");
    c = UPTRAIN(plain, "sequence_len=24");
    runs_expect(&c, 0, "already converted");
    free(model);
    free(tokens);
    free(plain);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(runs_length), cmocka_unit_test(another_length_another_conversion)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
