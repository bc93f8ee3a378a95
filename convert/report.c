/* What a conversion tells: a table for people, the convert schema (gqakit/convert/1) for programs. */
#include "convert.h"

#include <math.h>
#include <stdio.h>

static double group_error(const struct pool_error *e, int64_t g)
{
    return e->size[g] > 0 ? sqrt(e->distance[g] / e->size[g]) : 0.0;
}

double layer_error(const struct pool_error *e)
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

static json_t *numbers_json(const double *x, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_real(x[i]));
    return list;
}

static json_t *layer_json(int64_t l, const struct layer_errors *e)
{
    json_t *j = json_pack("{s:I, s:o, s:o}", "layer", (json_int_t)l, "k_rel_error", errors_json(&e->error[0]), "v_rel_error", errors_json(&e->error[1]));
    if (!e->j)
        return j;
    json_t *members = json_array();
    for (int64_t i = 0; i < e->heads; i++)
        json_array_append_new(members, json_integer(e->members[i]));
    json_object_set_new(j, "weighted_error", numbers_json(e->j, e->error[0].G));
    json_object_set_new(j, "weighted_error_of_mean", numbers_json(e->mean_j, e->error[0].G));
    json_object_set_new(j, "members", members);
    return j;
}

static double sum(const double *x, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += x[i];
    return s;
}

/* J is a share of what queries and outputs read, K's and V's added: 0 to 2 or so. */
static void expectation(const struct outcome *out, enum merge_method method, char *text, size_t n)
{
    double j = 0, mean = 0;
    int64_t layers = 0;
    for (int64_t l = 0; l < out->L; l++)
        if (out->layers[l].j) {
            layers++;
            j += sum(out->layers[l].j, out->layers[l].error[0].G);
            mean += sum(out->layers[l].mean_j, out->layers[l].error[0].G);
        }
    double of = 2 * (double)(layers ? layers : 1);
    if (mean / of < 1e-9)
        snprintf(text, n, "the heads of each group are equal: nothing was lost");
    else if (j / of < 1e-9)
        snprintf(text, n, "nothing was lost: every group's heads are copies of one head in different bases (a plain mean would lose %.0f%%)", 100 * mean / of);
    else
        snprintf(text, n, "%s loses %.0f%% of what attention reads of keys and values, a plain mean would lose %.0f%%: expect a starting loss above the original's%s",
                 merge_method_name(method), 100 * j / of, 100 * mean / of,
                 j >= 0.9 * mean ? "" : method == MERGE_SVD && !out->calibrated ? " and below mean's, of whose gap it usually closes half to four fifths" : " and below mean's");
}

/* The paper's own methods where positions rotate; "" elsewhere, or where nothing was lost. */
static void advice(const struct plan *plan, const struct options *o, const struct outcome *out, char *text, size_t n)
{
    double lost = 0;
    *text = 0;
    for (int64_t l = 0; out && l < out->L; l++)
        for (int kind = 0; kind < 2 && out->layers[l].error[kind].G; kind++)
            lost += layer_error(&out->layers[l].error[kind]);
    if (!plan->merges || plan->from.pos != POS_ROPE || o->method > MERGE_RANDOM || o->choice.chosen || o->refit != REFIT_NONE || (out && !(lost > 1e-6)))
        return;
    snprintf(text, n, "where positions rotate, %s is a poor start: --method auto starts far lower, with --calibration FILE lowest" , merge_method_name((enum merge_method)o->method));
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
    json_object_set_new(j, "method", plan->merges ? json_string(merge_method_name((enum merge_method)o->method)) : json_null());
    json_object_set_new(j, "grouping", json_string(o->grouping == GROUPING_SIMILAR ? "similar" : "consecutive"));
    json_object_set_new(j, "refit", plan->merges ? json_string(refit_name((enum refit)o->refit)) : json_null());
    json_object_set_new(j, "chosen_by", json_string(o->choice.chosen ? "auto" : "user"));
    json_object_set_new(j, "chosen_because", o->choice.chosen && plan->merges ? json_string(o->choice.why) : json_null());
    json_object_set_new(j, "kv_budget", o->budget ? budget_json(o->budget) : json_null());
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
            json_array_append_new(layers, layer_json(l, &out->layers[l]));
    if (plan->whole_layers)
        json_object_set_new(j, "merge_memory_bytes", json_integer(plan->layer_bytes));
    if (out && plan->whole_layers) {
        char sentence[400];
        if (out->calibrated)
            calibration_sentence(&out->calibration, plan, o, sentence, sizeof sentence);
        else
            expectation(out, (enum merge_method)o->method, sentence, sizeof sentence);
        json_object_set_new(j, "expect", json_string(sentence));
    }
    char advised[200];
    advice(plan, o, out, advised, sizeof advised);
    json_object_set_new(j, "advice", *advised ? json_string(advised) : json_null());
    json_object_set_new(j, "files", files);
    json_object_set_new(j, "layers", layers);
    json_object_set_new(j, "refused", auto_refused_json(&o->choice));
    json_object_set_new(j, "loss_before", out && out->calibrated ? json_real(out->calibration.loss_before) : json_null());
    json_object_set_new(j, "loss_after", out && out->calibrated ? json_real(out->calibration.loss_after) : json_null());
    json_object_set_new(j, "loss_mean", out && out->calibrated ? number_json(out->calibration.loss_mean) : json_null());
    json_object_set_new(j, "calibration", o->calibration ? calibration_json(&plan->calibration, out ? &out->calibration : NULL, o) : json_null());
    if (out) {
        json_object_set_new(j, "seconds", json_real(out->seconds));
        json_object_set_new(j, "peak_memory_bytes", json_integer(host_peak_rss()));
        json_object_set_new(j, "nonfinite_copied", json_integer(out->nonfinite_copied));
    }
    return j;
}

static void print_layers(const struct plan *plan, const struct options *o, const struct outcome *out)
{
    int whole = plan->whole_layers;
    char text[320] = "";
    if (whole)
        printf("\nrelative error of K and V as the queries and outputs read them; weighted error, and that of a plain mean\n%6s %10s %10s %10s %10s\n", "layer", "K", "V",
               "weighted", "mean's");
    else
        printf("\nrelative distance of the merged head from the heads it replaces\n%6s %10s %10s\n", "layer", "K", "V");
    for (int64_t l = 0; l < out->L; l++) {
        const struct layer_errors *e = &out->layers[l];
        if (!e->error[0].G)
            continue;
        printf("%6lld %10.4f %10.4f", (long long)l, layer_error(&e->error[0]), layer_error(&e->error[1]));
        if (e->j)
            printf(" %10.4f %10.4f", sum(e->j, e->error[0].G), sum(e->mean_j, e->error[0].G));
        for (int64_t i = 0; o->grouping == GROUPING_SIMILAR && e->members && i < e->heads; i++)
            printf("%s%lld", i == 0 ? "   " : i % (e->heads / e->error[0].G) ? "," : " ", (long long)e->members[i]);
        printf("\n");
    }
    if (whole)
        expectation(out, (enum merge_method)o->method, text, sizeof text);
    printf("\n%s%sThe function changed: measure it with gqa-eval perplexity, repair it with gqa-uptrain.\n", text, *text ? ".\n" : "");
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
    printf("key/value heads    %s%s%s\n", groups, plan->merges ? ", method " : "", plan->merges ? merge_method_name((enum merge_method)o->method) : "");
    if (o->choice.chosen && plan->merges)
        printf("method auto        %s%s%s, groups %s: %s\n", merge_method_name((enum merge_method)o->method), o->refit != REFIT_NONE ? " with refit " : "",
               o->refit != REFIT_NONE ? refit_name((enum refit)o->refit) : "", o->grouping == GROUPING_SIMILAR ? "by likeness" : "of neighbours", o->choice.why);
    if (plan->whole_layers) {
        char memory[16];
        format_bytes(memory, (double)plan->layer_bytes);
        printf("grouping           %s\nmerging memory     %s (one attention layer at a time)\n", o->grouping == GROUPING_SIMILAR ? "similar" : "consecutive", memory);
    }
    printf("home               %s%s: %s\n", ckpt_home_name(plan->choice.home), plan->choice.exact ? "" : " (approximate)", plan->choice.sentence);
    if (*plan->note)
        printf("note               %s\n", plan->note);
    char advised[200];
    advice(plan, o, out, advised, sizeof advised);
    if (*advised)
        printf("advice             %s\n", advised);
    if (o->calibration)
        calibration_print_size(&plan->calibration, o);
    printf("tensor bytes       %s -> %s\n", in, to);
    printf("K/V per token      %s -> %s\n", kv0, kv1);
    if (o->budget)
        budget_print(o->budget);
    if (!out)
        return;
    if (plan->merges)
        print_layers(plan, o, out);
    if (out->calibrated)
        calibration_print(&out->calibration, plan, o);
    printf("done in %.2f s\n", out->seconds);
}
