/* gqa-eval ablate: one YAML in, a resumable grid of cells, a report out. */
#include "ablate.h"
#include "eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options { int json; };
#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--json", CLI_SET, json, NULL, "results.json on stdout instead of the table"),
};
static const struct cli cli = {
    "gqa-eval ablate", "CONFIG.yaml [key.sub=value ...]",
    "Converts, uptrains and evaluates every cell of a grid (group counts x methods x groupings x losses x shares of training x seeds),\n"
    "then says which group count to ship: runs/NAME/report.html, report.md, results.json, results.csv. Stop it at any time; the same\n"
    "command continues. configs/ablation.yaml is an example with comments.\n"
    "The original (G = H) and the original trained on the same data are always measured.",
    flags, (int)(sizeof flags / sizeof flags[0]), 1, 60,
};

static enum code run(struct ablation *a)
{
    static char dir[1024];
    if (!a->config.output_dir) {
        snprintf(dir, sizeof dir, "runs/%s", a->config.name);
        a->config.output_dir = dir;
    }
    struct io_lock lock;
    interrupt_quiet(); /* whoever reads our progress may go away: the cells go on */
    TRY(ablate_grid(a));
    TRY(io_mkdirs(a->config.output_dir));
    TRY(io_lock_take(a->config.output_dir, &lock));
    enum code c = ablate_run(a);
    int done = 0;
    for (int i = 0; i < a->n_cells; i++)
        done += a->cells[i].done;
    if (c == OK || (c == ERR_STOPPED && done > 0)) { /* stopped: a report of what there is, and the code of the stop */
        char *sentence = strdup(fail_text());
        enum code w = ablate_summarise(a);
        if (w == OK)
            w = ablate_write(a);
        if (c == OK)
            c = w;
        else if (sentence)
            c = fail(c, "%s", sentence);
        free(sentence);
    }
    io_lock_drop(&lock);
    return c;
}

enum code command_ablate(int argc, char **argv)
{
    struct options o = { 0 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help) {
        printf("\nkeys of CONFIG.yaml\n");
        ablate_config_help();
        return OK;
    }
    struct ablation a;
    enum code c = ablate_load(&a, words.v[0], words.n - 1, words.v + 1);
    if (c == OK)
        c = run(&a);
    if (c == OK && o.json) {
        json_t *j = ablate_results(&a);
        json_print(j, 2);
        json_decref(j);
    } else if (c == OK) {
        ablate_table(&a, stdout);
        printf("\nreport: %s/report.html\n", a.config.output_dir);
    }
    ablate_free(&a);
    return c;
}
