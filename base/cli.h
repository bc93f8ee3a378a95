/* Command lines from one table: the parser, --help and the nearest-flag hint are generated from it. */
#ifndef GQAKIT_BASE_CLI_H
#define GQAKIT_BASE_CLI_H

#include <stddef.h>
#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum cli_type { CLI_SET /* int = 1 */, CLI_INT /* int64_t */, CLI_FLOAT /* double */, CLI_STR /* const char * */,
                CLI_INTS /* struct cli_ints: "1,8" */ , CLI_CHOICE /* int: index into arg "a|b|c" */ };

struct cli_ints { int n; int64_t v[64]; };

struct cli_flag {
    const char *name; /* "--kv-heads" */
    enum cli_type type;
    size_t offset;
    const char *arg;  /* what help shows after the name: "G", "a|b|c" for CLI_CHOICE, "FILE"; NULL for CLI_SET */
    const char *help; /* the default is part of the sentence */
};

struct cli {
    const char *program;  /* "gqa-convert" or "gqa-eval perplexity" */
    const char *synopsis; /* "SRC DST [flags]" */
    const char *about;    /* what it does, with examples; shown by --help above the flags */
    const struct cli_flag *flags;
    int n_flags;
    int min_words, max_words; /* positional arguments */
};

struct cli_words { int n; char *v[64]; };

/* argv[0] is skipped. --flag value and --flag=value; "--" ends flags. --help prints to stdout and sets *help_shown (return OK,
 * caller exits 0); --version likewise. Unknown flag or word count: ERR_USAGE with the nearest flag and "see PROGRAM --help". */
enum code cli_parse(const struct cli *cli, int argc, char **argv, void *dst, struct cli_words *words, int *help_shown) MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
