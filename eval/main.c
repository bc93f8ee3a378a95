/* gqa-eval: quality and decode speed of checkpoints, and the group-count report. */
#include "eval.h"

#include <stdio.h>
#include <string.h>

static const struct { const char *name; command_fn *run; const char *about; } commands[] = {
    { "perplexity", command_perplexity, "loss, perplexity and bits per byte on text or tokens" },
    { "score", command_score, "per-token log-probabilities as JSON lines" },
    { "tasks", command_tasks, "accuracy on multiple choice, minimal pairs and exact match (JSON lines)" },
    { "decode", command_decode, "prefill and decode tokens/s, K/V bytes, share of memory bandwidth" },
    { "generate", command_generate, "continue a prompt" },
    { "ablate", command_ablate, "convert + uptrain + evaluate a grid of group counts, and report which to ship" },
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void help(FILE *f)
{
    fprintf(f, "usage: gqa-eval COMMAND ...\n\nMeasures checkpoints: Hugging Face directories, native .h5, run directories, llama2.c .bin.\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-12s %s\n", commands[i].name, commands[i].about);
    fprintf(f, "\ngqa-eval COMMAND --help tells more. Exit codes: 0 ok, 1 internal, 2 usage, 3 bad input, 4 unsupported, 5 I/O, 6 memory,\n"
            "7 a result that is not finite, 8 no device, 9 locked by another run, 75 stopped by a signal (ablate: the same command continues).\n");
}

static enum code run(int argc, char **argv)
{
    if (argc < 2) {
        help(stderr);
        return fail(ERR_USAGE, "which command? see gqa-eval --help");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help(stdout);
        return OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("gqa-eval " GQAKIT_VERSION "\n");
        return OK;
    }
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++) {
        names[i] = commands[i].name;
        if (strcmp(argv[1], names[i]) == 0)
            return commands[i].run(argc - 1, argv + 1);
    }
    const char *near = config_nearest(argv[1], names, N_COMMANDS);
    return fail(ERR_USAGE, "no command \"%s\"%s%s%s; see gqa-eval --help", argv[1], near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    json_result_command(argc, argv);
    return fail_exit("gqa-eval", run(argc, argv));
}
