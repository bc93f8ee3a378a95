/* What a conversion tells: a table for people, the convert schema (gqakit/convert/1) for programs. */
#include "convert.h"

#include <math.h>
#include <stdio.h>

static double group_error(const struct pool_error *e, int64_t g)
{
    return e->size[g] > 0 ? sqrt(e->distance[g] / e->size[g]) : 0.0;
}

static double layer_error(const struct pool_error *e)
{
    double distance = 0, size = 0;
    for (int64_t g = 0; g < e->G; g++) {
        distance += e->distance[g];
        size += e->size[g];
    }
    return size > 0 ? sqrt(distance / size) : 0.0;
}

static json_t *groups_json(const struct plan *plan)
{
    const struct arch_stack *s = &plan->arch.stack[STACK_DEC];
    json_t *list = json_array();
    for (int64_t l = 0; l < s->L; l++)
        json_array_append_new(list, json_integer(s->block[l].G));
    return list;
}

static json_t *pooled_json(const struct plan *plan)
{
    json_t *list = json_array();
    for (int64_t l = 0; l < plan->arch.stack[STACK_DEC].L; l++)
        json_array_append_new(list, json_integer(plan->pooled[l]));
    return list;
}

static json_t *errors_json(const struct pool_error *e)
{
    json_t *list = json_array();
    for (int64_t g = 0; g < e->G; g++)
        json_array_append_new(list, json_real(group_error(e, g)));
    return list;
}

json_t *report_home(const struct ckpt_choice *c)
{
    return json_pack("{s:s, s:s, s:b, s:s}", "home", ckpt_home_name(c->home), "family", c->family, "exact", c->exact, "sentence", c->sentence);
}

json_t *report_convert(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out)
{
    json_t *j = json_result("convert", "cpu"), *files = json_array(), *layers = json_array();
    json_object_set_new(j, "source", json_string(ckpt_path(source)));
    json_t *target = report_home(&plan->choice);
    json_object_set_new(target, "path", json_string(o->target));
    json_object_set_new(j, "target", target);
    json_object_set_new(j, "dry_run", json_boolean(out == NULL));
    json_object_set_new(j, "method", plan->merges ? json_string(method_name((enum method)o->method)) : json_null());
    json_object_set_new(j, "grouping", json_string("consecutive"));
    json_object_set_new(j, "seed", json_integer(o->seed));
    json_object_set_new(j, "groups", groups_json(plan));
    json_object_set_new(j, "pooled", pooled_json(plan));
    json_object_set_new(j, "approximate", *plan->note ? json_string(plan->note) : json_null());
    json_object_set_new(j, "bytes_in", json_integer(plan->bytes_in));
    json_object_set_new(j, "bytes_out", json_integer(plan->bytes_out));
    json_object_set_new(j, "kv_bytes_per_token", json_integer(arch_kv_bytes_per_token(&plan->arch, 0, plan->arch.dtype)));
    for (int i = 0; out && i < out->n_inputs; i++)
        json_array_append_new(files, json_pack("{s:s, s:s, s:I}", "path", out->inputs[i].path, "sha256", out->inputs[i].sha256, "bytes",
                                               (json_int_t)out->inputs[i].bytes));
    for (int64_t l = 0; out && l < out->L; l++)
        if (out->layers[l].error[0].G)
            json_array_append_new(layers, json_pack("{s:I, s:o, s:o}", "layer", (json_int_t)l, "k_rel_error", errors_json(&out->layers[l].error[0]),
                                                    "v_rel_error", errors_json(&out->layers[l].error[1])));
    json_object_set_new(j, "files", files);
    json_object_set_new(j, "layers", layers);
    json_object_set_new(j, "refused", json_array());
    json_object_set_new(j, "loss_before", json_null());
    json_object_set_new(j, "loss_after", json_null());
    if (out) {
        json_object_set_new(j, "seconds", json_real(out->seconds));
        json_object_set_new(j, "peak_memory_bytes", json_integer(host_peak_rss()));
        json_object_set_new(j, "nonfinite_copied", json_integer(out->nonfinite_copied));
    }
    return j;
}

void report_convert_table(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out)
{
    char groups[256], in[16], to[16], kv0[16], kv1[16];
    plan_groups_text(plan, groups, sizeof groups);
    format_bytes(in, (double)plan->bytes_in);
    format_bytes(to, (double)plan->bytes_out);
    format_bytes(kv0, (double)arch_kv_bytes_per_token(&plan->from, 0, plan->from.dtype));
    format_bytes(kv1, (double)arch_kv_bytes_per_token(&plan->arch, 0, plan->arch.dtype));
    printf("source             %s (%s)\n", ckpt_path(source), ckpt_form_name(source));
    printf("target             %s%s\n", o->target, out ? "" : " (dry run: nothing was written)");
    printf("key/value heads    %s%s%s\n", groups, plan->merges ? ", method " : "", plan->merges ? method_name((enum method)o->method) : "");
    printf("home               %s%s: %s\n", ckpt_home_name(plan->choice.home), plan->choice.exact ? "" : " (approximate)", plan->choice.sentence);
    if (*plan->note)
        printf("note               %s\n", plan->note);
    printf("tensor bytes       %s -> %s\n", in, to);
    printf("K/V per token      %s -> %s\n", kv0, kv1);
    if (!out)
        return;
    if (plan->merges) {
        printf("\nrelative distance of the merged head from the heads it replaces\n%6s %10s %10s\n", "layer", "K", "V");
        for (int64_t l = 0; l < out->L; l++)
            if (out->layers[l].error[0].G)
                printf("%6lld %10.4f %10.4f\n", (long long)l, layer_error(&out->layers[l].error[0]), layer_error(&out->layers[l].error[1]));
        printf("\nThe function changed: measure it with gqa-eval perplexity, repair it with gqa-uptrain.\n");
    }
    printf("done in %.2f s\n", out->seconds);
}
