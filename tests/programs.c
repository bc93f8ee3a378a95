/* See programs.h. */
#include "programs.h"

struct child program_run(const char *name, const char *const *arguments)
{
    const char *argv[32];
    char *path = program_path(name);
    int n = 0;
    argv[n++] = path;
    for (; *arguments; arguments++) {
        CHECK(n + 1 < 32);
        argv[n++] = *arguments;
    }
    argv[n] = NULL;
    struct child c = child_run(argv, NULL);
    free(path);
    return c;
}

static void said(const struct child *c, int status, const char *part)
{
    print_error("exit %d, wanted %d with \"%s\"; stderr:\n%s\n", c->status, status, part, c->err);
}

void program_ok(struct child c)
{
    if (c.status != 0)
        said(&c, 0, "");
    assert_int_equal(c.status, 0);
    child_free(&c);
}

json_t *program_json(struct child c)
{
    if (c.status != 0)
        said(&c, 0, "");
    assert_int_equal(c.status, 0);
    json_t *j = json_loads(c.out, 0, NULL);
    assert_non_null(j);
    child_free(&c);
    return j;
}

void program_refused(struct child c, int status, const char *part)
{
    int right = c.status == status && strstr(c.err, part);
    if (!right)
        said(&c, status, part);
    assert_true(right);
    child_free(&c);
}

double json_number_at(const json_t *j, const char *key)
{
    const json_t *v = json_object_get(j, key);
    if (!json_is_number(v))
        print_error("no number \"%s\"\n", key);
    assert_true(json_is_number(v));
    return json_number_value(v);
}
