#include "ablate_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

static const int64_t groups[] = { 4, 2, 1 }, seeds[] = { 0, 1 }, batch[] = { 1 }, context[] = { 512 };
static const char *const methods[] = { "mean", "svd+all" }, *const groupings[] = { "consecutive" }, *const losses[] = { "ce", "distill" };
static const double shares[] = { 0, 0.005, 0.05 };

void ablate_case(struct ablation *a)
{
    memset(a, 0, sizeof *a);
    a->advice.pick = a->advice.nearest = a->advice.cell = -1;
    a->H = 8;
    a->original_tokens = 1e6;
    snprintf(a->source_hash, sizeof a->source_hash, "%032d", 7);
    a->uptrain = json_pack("{s:f, s:i}", "original_tokens", 1e6, "sequence_len", 64);
    a->distill = json_pack("{s:f}", "weight", 0.5);
    a->config = (struct ablate_config){
        .name = "case <b>&", .model = "some-model", .output_dir = "runs/case", .groups = { 3, groups }, .method = { 2, methods }, .grouping = { 1, groupings },
        .loss = { 2, losses },    .alpha = { 3, shares }, .seed = { 2, seeds }, .calibration = "calibration.txt", .decode_batch = { 1, batch },
        .decode_context = { 1, context }, .margin = 0.02, .kl = 1, .pack = 1, .device = "cpu",
    };
    assert_ok(ablate_grid(a));
}

void ablate_case_again(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        json_decref(a->cells[i].curve);
        json_decref(a->cells[i].evals);
        json_decref(a->cells[i].tasks);
        json_decref(a->cells[i].decode);
    }
    a->n_cells = 0;
    assert_ok(ablate_grid(a));
}

double ablate_case_excess(const struct cell *c)
{
    double start = strcmp(c->method, "mean") == 0 ? 2.0 : strcmp(c->method, "none") == 0 ? 0 : 0.2;
    double left = c->alpha <= 0 ? 1 : c->alpha < 0.01 ? 0.3 : 0.05;
    double heads = c->G == 8 ? -0.004 : c->G == 4 ? 0.1 : c->G == 2 ? 1 : 2;
    return c->G == 8 ? (c->alpha > 0 ? heads : 0) : start * left * heads * (strcmp(c->loss, "distill") == 0 ? 0.8 : 1);
}

void ablate_case_fill(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        struct cell *c = &a->cells[i];
        double e = ablate_case_excess(c), noise = c->alpha > 0 && c->G != 8 ? (c->seed ? 0.001 : -0.001) : 0;
        struct cell zero = *c;
        zero.alpha = 0;
        zero.loss = "ce";
        c->done = 1;
        c->loss_zero_step = 1 + ablate_case_excess(&zero);
        c->loss_final = 1 + e + noise;
        c->loss_stderr = 0.01;
        c->difference_stderr = 0;
        c->kl = fabs(e) / 2;
        c->kl_zero_step = c->kl_stderr = 0;
        c->bits_per_byte = c->loss_final / 0.693;
        c->convert_s = 1;
        c->tokens = (int64_t)(c->alpha * 1e6);
        c->steps = c->tokens / 64;
        c->uptrain_s = 1e-3 * (double)c->tokens * (strcmp(c->loss, "distill") == 0 ? 2 : 1);
        c->seconds = c->uptrain_s + 3;
        c->kv_bytes = 128 * c->G;
        c->curve = json_array();
        c->evals = json_array();
        for (int k = 0; c->alpha > 0 && k < 4; k++)
            json_array_append_new(c->evals, json_pack("[i, f]", (int)c->steps * k / 3, c->loss_zero_step + (c->loss_final - c->loss_zero_step) * k / 3));
        c->decode = json_pack("[{s:i, s:i, s:f, s:f, s:f, s:f}]", "batch", 1, "context", 512, "ms_per_token", 1 + 0.1 * (double)c->G, "stdev", 0.01, "prefill_tok_s", 100.0,
                              "decode_tok_s", 1000 / (1 + 0.1 * (double)c->G));
        c->tasks = json_pack("{s:{s:s, s:f, s:f, s:i}}", "pairs", "metric", "acc", "value", 0.9 - e / 10, "stderr", 0.02, "n", 200);
    }
}

struct cell *ablate_case_cell(struct ablation *a, int64_t G, const char *method, const char *loss, double alpha, int64_t seed)
{
    for (int i = 0; i < a->n_cells; i++) {
        struct cell *c = &a->cells[i];
        if (c->G == G && strcmp(c->method, method) == 0 && strcmp(c->loss, loss) == 0 && fabs(c->alpha - alpha) < 1e-12 && c->seed == seed)
            return c;
    }
    print_error("no cell %lld %s %s %g %lld\n", (long long)G, method, loss, alpha, (long long)seed);
    assert_true(0);
    return NULL;
}
