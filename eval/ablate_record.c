/* result.json of a cell: written when everything of it is measured, read instead of measuring again. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RESULT_LIMIT (64u << 20)

struct number_field { const char *key; size_t offset; int needed; };
#define FIELD(name, needed) { #name, offsetof(struct cell, name), needed }
/* Those not needed are NaN when they are not measured, and absent from the file. */
static const struct number_field fields[] = {
    FIELD(loss_zero_step, 1), FIELD(loss_final, 1), FIELD(loss_stderr, 1), FIELD(difference_stderr, 0), FIELD(bits_per_byte, 0), FIELD(kl_zero_step, 0), FIELD(kl, 0),
    FIELD(kl_stderr, 0),      FIELD(convert_s, 0),  FIELD(uptrain_s, 0),   FIELD(seconds, 0),
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

static double *field_of(struct cell *c, const struct number_field *f) { return (double *)(void *)((char *)c + f->offset); }

json_t *ablate_record(const struct cell *c)
{
    json_t *j = json_pack("{s:s, s:I, s:I}", "id", c->id, "steps", (json_int_t)c->steps, "tokens", (json_int_t)c->tokens);
    for (int i = 0; i < N_FIELDS; i++) {
        double x = *field_of((struct cell *)(uintptr_t)c, &fields[i]);
        if (isfinite(x)) {
            json_object_set_new(j, fields[i].key, json_real(x));
        } else if (fields[i].needed) {
            json_decref(j);
            return NULL;
        }
    }
    json_object_set(j, "curve", c->curve);
    json_object_set(j, "evals", c->evals);
    json_object_set(j, "tasks", c->tasks);
    json_object_set_new(j, "home", json_string(c->home));
    json_object_set_new(j, "chosen", json_string(c->chosen));
    return j;
}

static void copy_string(const json_t *j, const char *key, char *out, size_t n)
{
    const char *text = json_string_value(json_object_get(j, key));
    snprintf(out, n, "%s", text ? text : "");
}

enum code ablate_record_load(struct cell *c, const char *path)
{
    json_t *j = NULL;
    TRY(json_read_file(path, RESULT_LIMIT, &j));
    enum code e = OK;
    for (int i = 0; e == OK && i < N_FIELDS; i++)
        e = fields[i].needed ? json_need_f64(j, path, fields[i].key, field_of(c, &fields[i])) : json_want_f64(j, path, fields[i].key, field_of(c, &fields[i]));
    c->steps = json_integer_value(json_object_get(j, "steps"));
    c->tokens = json_integer_value(json_object_get(j, "tokens"));
    copy_string(j, "home", c->home, sizeof c->home);
    copy_string(j, "chosen", c->chosen, sizeof c->chosen);
    c->curve = json_incref(json_object_get(j, "curve"));
    c->evals = json_incref(json_object_get(j, "evals"));
    c->tasks = json_incref(json_object_get(j, "tasks"));
    json_decref(j);
    return e;
}
