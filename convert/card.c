/* The model card of a result: front matter that model hubs read, then provenance a person can check. */
#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* Per layer: heads, the errors of keys and values, and of a calibration the entropy of attention before and after. */
static void write_layers(FILE *f, const struct plan *plan, const struct options *o, const struct outcome *out)
{
    fprintf(f, "\n## Layers\n\n%s%s\n\n| layer | key/value heads | error of K | error of V |%s\n|---|---|---|---|%s\n",
            plan->whole_layers ? "Relative errors as the queries and outputs read keys and values" : "Relative distances of the merged heads from those they replace",
            out->calibrated ? "; entropy of attention in nats, mean over heads and held-out tokens." : ".", out->calibrated ? " entropy before | after |" : "",
            out->calibrated ? "---|---|" : "");
    for (int64_t l = 0; l < out->L; l++) {
        const struct layer_errors *e = &out->layers[l];
        fprintf(f, "| %lld | %lld -> %lld | %.4f | %.4f |", (long long)l, (long long)plan->from.stack[STACK_DEC].block[l].G, (long long)plan->pooled[l],
                layer_error(&e->error[0]), layer_error(&e->error[1]));
        if (out->calibrated)
            fprintf(f, " %.3f | %.3f |", calibration_entropy(&out->calibration.layer[l], 0), calibration_entropy(&out->calibration.layer[l], 1));
        fprintf(f, "\n");
    }
    if (o->budget)
        fprintf(f, "\nNumbers of heads chosen under a K/V budget of %s (%lld of %lld bytes per token, %lld used).\n", o->budget->asked, (long long)o->budget->bytes,
                (long long)o->budget->most, (long long)o->budget->used);
}

char *card_text(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out)
{
    char *text = NULL, *inherited = card_inherited(source), groups[256];
    size_t n = 0;
    FILE *f = inherited ? open_memstream(&text, &n) : NULL;
    if (!f) {
        free(inherited);
        return NULL;
    }
    plan_groups_text(plan, groups, sizeof groups);
    const char *method = merge_method_name((enum merge_method)o->method);
    fprintf(f, "---\n%slibrary_name: transformers\npipeline_tag: text-generation\nbase_model: %s\nbase_model_relation: finetune\ntags:\n",
            inherited, base_name(ckpt_path(source)));
    free(inherited);
    fprintf(f, plan->merges ? "- gqa\n- gqakit\n- %s-pool\n---\n\n" : "- gqakit\n---\n\n", method);
    fprintf(f, "# %s\n\n", base_name(o->target));
    if (plan->merges)
        fprintf(f, "Grouped-query form of `%s`: key/value heads %s, heads of a group merged by `%s`%s%s (Ainslie et al. 2023, GQA)%s%s.\n"
                   "No training has followed the merge: expect higher loss until it is uptrained.\n",
                base_name(ckpt_path(source)), groups, method, o->refit != REFIT_NONE ? ", linear maps fitted to the original: " : "",
                o->refit != REFIT_NONE ? refit_name((enum refit)o->refit) : "", o->choice.chosen ? "; chosen by gqakit: " : "", o->choice.chosen ? o->choice.why : "");
    else if (plan->repeats)
        fprintf(f, "`%s` with key/value heads %s: copies, so it computes the same.\n", base_name(ckpt_path(source)), groups);
    else if (plan->choice.rewrite)
        fprintf(f, "`%s` in another form.\n", base_name(ckpt_path(source)));
    else
        fprintf(f, "Format conversion of `%s`; no value was changed%s.\n", base_name(ckpt_path(source)),
                options_dtype(o) == DT_NONE ? "" : " beyond the element type");
    fprintf(f, "\nHome: %s%s: %s.\n", ckpt_home_name(plan->choice.home), plan->choice.exact ? "" : " (approximate)", plan->choice.sentence);
    if (*plan->note)
        fprintf(f, "\nApproximate: %s.\n", plan->note);
    if (plan->merges)
        write_layers(f, plan, o, out);
    char loss[400] = "Loss before and after: not measured";
    if (out->calibrated)
        calibration_sentence(&out->calibration, plan, o, loss, sizeof loss);
    fprintf(f, "\n## Provenance\n\nMade by gqakit " GQAKIT_VERSION " (gqa-convert). %s. %s.\n\n"
               "| input file | bytes | SHA-256 |\n|---|---|---|\n",
            o->grouping == GROUPING_SIMILAR ? "Groups are heads that merge with the least error, put side by side" : "Groups are consecutive heads", loss);
    for (int i = 0; i < out->n_inputs; i++)
        fprintf(f, "| %s | %lld | %s |\n", out->inputs[i].path, (long long)out->inputs[i].bytes, out->inputs[i].sha256);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
