/* MANIFEST.json of a step whose digest is right and whose content is not: written by hand or by another program. Each is refused by name, and the
 * step before is taken. */
#include <unistd.h>

#include "checkpoints/step.h"
#include "damage.h"
#include "native_model.h"

/* `members` and a digest that fits, as the file ends when we write it. */
static char *manifest(const char *members)
{
    static char text[4096];
    char hex[65];
    snprintf(text, sizeof text, "{\n%s%s\"digest\": \"%064d\"\n}\n", members, *members ? ",\n" : "", 0);
    size_t n = strlen(text);
    sha256_of(text, n, hex);
    memcpy(text + n - 4 - 64, hex, 64);
    return text;
}

#define FILES "\"files\": [{\"path\": \"x\", \"bytes\": 1, \"xxh128\": \"0\"}]"
#define HEAD "\"schema\": \"gqakit/step/1\", \"step\": 7"

static void test_fields(void **state)
{
    (void)state;
    static const struct { const char *members, *part; } cases[] = {
        {"", "\"schema\": expected a string, found nothing"},
        {"\"schema\": 1", "\"schema\": expected a string, found an integer"},
        {"\"schema\": \"gqakit/step/2\", \"step\": 7, " FILES, "schema \"gqakit/step/2\", expected \"gqakit/step/1\""},
        {"\"schema\": \"gqakit/step/1\", " FILES, "\"step\": expected an integer, found nothing"},
        {"\"schema\": \"gqakit/step/1\", \"step\": -1, " FILES, "found -1"},
        {HEAD, "\"files\" must be a list of 1 to 65536 files"},
        {HEAD ", \"files\": {}", "\"files\" must be a list"},
        {HEAD ", \"files\": []", "\"files\" must be a list"},
        {HEAD ", \"files\": [\"x\"]", "\"files\" must hold objects"},
        {HEAD ", \"files\": [{\"bytes\": 1, \"xxh128\": \"0\"}]", "\"path\": expected a string, found nothing"},
        {HEAD ", \"files\": [{\"path\": \"../x\", \"bytes\": 1, \"xxh128\": \"0\"}]", "file \"../x\" leaves the directory"},
        {HEAD ", \"files\": [{\"path\": \"/etc/passwd\", \"bytes\": 1, \"xxh128\": \"0\"}]", "leaves the directory"},
        {HEAD ", \"files\": [{\"path\": \"x\", \"bytes\": -1, \"xxh128\": \"0\"}]", "\"bytes\": expected an integer from 0"},
        {HEAD ", \"files\": [{\"path\": \"x\", \"bytes\": 1}]", "\"xxh128\": expected a string, found nothing"},
        {HEAD ", " FILES ", \"meta\": []", "\"meta\" must be an object"},
        {HEAD ", " FILES ", " FILES, "duplicate object key"},
        {HEAD ", " FILES "}", "not valid JSON"},
    };
    json_t *root;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *text = manifest(cases[i].members);
        root = (json_t *)&root;
        assert_refused(manifest_parse(text, strlen(text), "M.json", &root), ERR_INPUT, cases[i].part);
        assert_non_null(strstr(fail_text(), "M.json: "));
        assert_null(root);
    }
    char *text = manifest(HEAD ", " FILES);
    assert_ok(manifest_parse(text, strlen(text), "M.json", &root));
    assert_int_equal(json_integer_value(json_object_get(root, "step")), 7);
    json_decref(root);
    text[3] ^= 1;
    assert_refused(manifest_parse(text, strlen(text), "M.json", &root), ERR_INPUT, "its digest does not match");
    assert_refused(manifest_parse(text, strlen(text) - 1, "M.json", &root), ERR_INPUT, "does not end with its digest");
    assert_refused(manifest_parse("", 0, "M.json", &root), ERR_INPUT, "does not end with its digest");
}

/* What such a manifest says of the files beside it; then the step before. */
static void test_directory(void **state)
{
    (void)state;
    static const struct { const char *members, *part; } cases[] = {
        {"\"schema\": \"gqakit/step/1\", \"step\": 20, " FILES, "/x: listed in MANIFEST.json but missing"},
        {"\"schema\": \"gqakit/step/1\", \"step\": 20, \"files\": [{\"path\": \"rank-00000.h5\", \"bytes\": 1, \"xxh128\": \"0\"}]", "rank-00000.h5: 1 bytes recorded, "},
        {"\"schema\": \"gqakit/step/1\", \"step\": 21, " FILES, "is of step 21, but the directory says step 20"},
    };
    struct arch a;
    char *run = temp_path("run"), *step = temp_path("run/step-00000020"), *file = temp_path("run/step-00000020/" STEP_MANIFEST);
    native_arch(&a, 8, 0);
    assert_ok(step_put(run, &a, 10, 2));
    assert_ok(step_put(run, &a, 20, 2));
    assert_int_equal(step_found(run, &a), 20);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int files = 0;
        damage_text("run/step-00000020/" STEP_MANIFEST, manifest(cases[i].members));
        assert_refused(manifest_verify(step, NULL, &files), ERR_INPUT, cases[i].part);
        assert_int_equal(files, 0);
        assert_refused(ckpt_verify(step, &files), ERR_INPUT, cases[i].part);
        assert_int_equal(step_found(run, &a), 10);
    }
    unlink(file);
    assert_refused(manifest_verify(step, NULL, NULL), ERR_INPUT, "missing: not a whole step directory");
    assert_int_equal(step_found(run, &a), 10);
    int files;
    assert_refused(ckpt_verify("no/such/run", &files), ERR_INPUT, "no/such/run: no such file or directory");
    arch_free(&a);
    free(run), free(step), free(file);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fields), cmocka_unit_test(test_directory)};
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
