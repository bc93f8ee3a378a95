/* gqa-convert: checkpoint -> checkpoint with fewer key/value heads, or any format -> any format. */
#include "convert.h"
#include "kernels/kernels.h"

#include <stdio.h>

#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--kv-heads", CLI_INT, kv_heads, "G", "key/value heads of every layer in the result; divides the source's, or is a multiple of them (heads are repeated). Without it only the format changes"),
    FLAG("--kv-heads-per-layer", CLI_INTS, kv_heads_per_layer, "G0,G1,...", "one count per layer (.h5, gqakit's own form, or GGUF of a LLaMA)"),
    FLAG("--kv-budget", CLI_STR, kv_budget, "SHARE%|BYTES", "with --calibration, instead of --kv-heads: all layers' K/V bytes per token, as a share of the source's or in bytes; the "
         "number of heads is chosen for each layer, by the error that merging it leaves"),
    FLAG("--target", CLI_CHOICE, home, CKPT_HOMES, "where the result lives: its own class; another class, after an exact rewriting; GGUF (*.gguf); gqakit's own "
         "modeling file; every head's own copy. auto (default): GGUF if DST is *.gguf, else the first exact one of native, retarget, custom"),
    FLAG("--target-family", CLI_STR, family, "NAME", "the other class, for --target retarget (phi, gpt_bigcode, llama ...)"),
    FLAG("--method", CLI_CHOICE, method, METHODS, "how heads of a group become one: their mean (default), the first, a fresh random one, the one with the "
         "most energy; align: turned into a common basis, then the mean; svd: the best shared head by least squares; auto: whatever starts lowest (with --calibration: align, --refit all, --grouping similar)"),
    FLAG("--grouping", CLI_CHOICE, grouping, GROUPINGS, "which heads share a group: neighbours (default), or those that merge with the least error (auto's with --calibration)"),
    FLAG("--calibration", CLI_STR, calibration, "FILE", "tokens (as gqa-eval takes them) or text that the source runs over, layer by layer: merging by what attention reads, and "
         "the loss before and after"),
    FLAG("--calibration-tokens", CLI_INT, calibration_tokens, "N", "how many, spread over FILE; the last tenth is held out (default 32768)"),
    FLAG("--sequence-length", CLI_INT, sequence_length, "N", "of the calibration (default: the model's positions, at most 1024)"),
    FLAG("--refit", CLI_CHOICE, refit, REFIT_NAMES, "with --calibration: fit to the original's hidden states, by least squares, the output projection; block: the MLP's down "
         "projection too; all: the query and key projections too (default none; of --method auto: all)"),
    FLAG("--moments", CLI_CHOICE, moments, MOMENTS_NAMES, "carry: merge the optimizer's moments of a run directory too, for gqa-uptrain to start from; two "
         "f32 numbers for each weight (default none)"),
    FLAG("--threads", CLI_INT, threads, "N", "of the calibration (default 0: all CPUs)"),
    FLAG("--dtype", CLI_CHOICE, dtype, "keep|f32|bf16|f16", "element type of the result (default keep)"),
    FLAG("--seed", CLI_INT, seed, "N", "for --method random (default 0)"),
    FLAG("--shard-size", CLI_INT, shard_mb, "MB", "start a new safetensors shard beyond this (default: the source's shards)"),
    FLAG("--header-limit", CLI_INT, header_mb, "MB", "largest safetensors header accepted, up to 100 (default 16)"),
    FLAG("--compress", CLI_SET, compress, NULL, "deflate the tensors of a .h5 target (about 12 x slower, 14-28% smaller)"),
    FLAG("--dry-run", CLI_SET, dry_run, NULL, "say what would be done, write nothing"),
    FLAG("--force", CLI_SET, force, NULL, "replace an existing target once the new one is complete"),
    FLAG("--inspect", CLI_SET, inspect, NULL, "describe SRC: architecture, tensors, legal group counts, K/V bytes per token"),
    FLAG("--verify", CLI_STR, verify, "DIR", "re-hash a result against what it recorded, the optimizer's moments too"),
    FLAG("--json", CLI_SET, json, NULL, "results as JSON on stdout"),
    FLAG("--quiet", CLI_SET, quiet, NULL, "no progress on stderr"),
};

static const struct cli cli = {
    "gqa-convert",
    "SRC DST [flags]   |   --inspect SRC   |   --verify DIR",
    "Converts a multi-head-attention checkpoint to grouped-query (1 < G < H) or multi-query (G = 1) attention by merging the\n"
    "key/value heads of each group (Ainslie et al. 2023, GQA), or changes the format only.\n"
    "\n"
    "  SRC   a Hugging Face directory, a native .h5, a run or step directory of gqa-uptrain, or a llama2.c .bin\n"
    "  DST   *.h5 native, *.gguf, else a Hugging Face directory\n"
    "\n"
    "  gqa-convert --inspect my-model                      which group counts are legal, what each saves\n"
    "  gqa-convert my-model my-model-gqa4 --kv-heads 4     mean of each group's heads\n"
    "  gqa-convert my-model my-model-gqa4 --kv-heads 4 --method auto --calibration train.jsonl   the best start\n"
    "  gqa-convert my-model my-model.h5 --kv-budget 25% --method auto --calibration train.jsonl  heads where they matter\n"
    "  gqa-convert model.bin model-hf                      llama2.c to Hugging Face\n"
    "\n"
    "A merged model has lost quality: continue with gqa-uptrain. Exit codes: 0 ok, 1 internal, 2 usage,\n"
    "3 bad input, 4 unsupported, 5 I/O, 6 memory.",
    flags, (int)(sizeof flags / sizeof flags[0]), 0, 2,
};

static enum code verify_run(const struct options *o)
{
    int n = 0;
    TRY(ckpt_verify(o->verify, &n));
    if (o->json) {
        json_t *j = json_result("verify", "cpu");
        json_object_set_new(j, "path", json_string(o->verify));
        json_object_set_new(j, "files_checked", json_integer(n));
        json_print(j, 2);
        json_decref(j);
    } else {
        printf("%s: %d files match what was recorded\n", o->verify, n);
    }
    return OK;
}

/* What was left open, the numbers of heads under a budget, then the plan. */
static enum code settle(struct options *o, struct budget *budget, struct plan *plan, struct checkpoint *source)
{
    auto_choose(&o->choice, o, ckpt_arch(source));
    if (o->kv_budget) {
        TRY(budget_choose(budget, source, o));
        o->budget = budget;
    }
    TRY(plan_make(plan, source, o));
    TRY(auto_lossless(&o->choice, o, source, plan));
    if (!o->choice.lossless)
        return OK;
    plan_free(plan);
    return plan_make(plan, source, o);
}

static enum code convert_run(struct options *o)
{
    struct ckpt_options open_options = { o->header_mb << 20 };
    struct checkpoint *source = NULL;
    struct plan plan = { 0 };
    struct outcome out = { 0 };
    struct budget budget = { 0 };
    TRY(ckpt_open(&source, o->source, &open_options));
    enum code c = settle(o, &budget, &plan, source);
    if (c == OK) {
        struct checkpoint *rewritten;
        c = ckpt_rewritten(&rewritten, source, &plan.choice);
        source = rewritten;
    }
    if (c == OK && o->dry_run)
        c = stream_check(source, &plan, o);
    if (c == OK && o->calibration)
        c = calibration_measure(&plan.calibration, source, &plan, o);
    if (c == OK && !o->dry_run)
        c = stream_convert(source, &plan, o, &out);
    if (c == OK && o->json) {
        json_t *j = report_convert(source, &plan, o, o->dry_run ? NULL : &out);
        json_print(j, 2);
        json_decref(j);
    } else if (c == OK) {
        report_convert_table(source, &plan, o, o->dry_run ? NULL : &out);
    }
    outcome_free(&out);
    plan_free(&plan);
    budget_free(&budget);
    ckpt_close(source);
    return c;
}

static enum code run(int argc, char **argv)
{
    struct options o = { .kv_heads = KV_HEADS_KEEP, .method = -1, .grouping = -1, .refit = -1 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    log_quiet(o.quiet);
    if (o.header_mb < 0 || o.header_mb > 100)
        return fail(ERR_USAGE, "--header-limit is in MB, from 1 to 100");
    if (o.shard_mb < 0 || o.shard_mb > (1 << 30))
        return fail(ERR_USAGE, "--shard-size is in MB, from 1 to %d", 1 << 30);
    if (o.calibration_tokens < 0 || o.sequence_length < 0 || o.sequence_length > (1 << 24) || o.threads < 0 || o.threads > 4096)
        return fail(ERR_USAGE, "--calibration-tokens and --threads must be positive, --sequence-length from 1 to %d", 1 << 24);
    if (!o.calibration && (o.refit > REFIT_NONE || o.calibration_tokens || o.sequence_length))
        return fail(ERR_USAGE, "--refit, --calibration-tokens and --sequence-length need --calibration FILE");
    if (o.verify)
        return words.n == 0 ? verify_run(&o) : fail(ERR_USAGE, "--verify takes one directory and nothing else");
    if (words.n != (o.inspect ? 1 : 2))
        return fail(ERR_USAGE, o.inspect ? "--inspect takes one checkpoint" : "expected SRC and DST; see gqa-convert --help");
    o.source = words.v[0];
    o.target = o.inspect ? NULL : words.v[1];
    return o.inspect ? inspect_run(&o) : convert_run(&o);
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    interrupt_install();
    json_result_command(argc, argv);
    int status = fail_exit("gqa-convert", run(argc, argv));
    if (status == ERR_STOPPED)
        interrupt_end();
    return status;
}
