/* Command lines and their help from one table. */
#include "base/cli.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "base/host.h"

enum { MOST_FLAGS = 128 };

static enum code take_int(const struct cli *cli, const struct cli_flag *f, const char *text, const char *end, int64_t *out)
{
    char *stop;
    errno = 0;
    long long v = strtoll(text, &stop, 10);
    if (stop == text || stop != end || errno == ERANGE || text[strspn(text, " \t\n")] != *text)
        return fail(ERR_USAGE, "%s: expected an integer%s, found '%.60s'; see %s --help", f->name,
                    f->type == CLI_INTS ? " list such as 1,8" : "", text, cli->program);
    *out = v;
    return OK;
}

static enum code take_list(const struct cli *cli, const struct cli_flag *f, const char *text, struct cli_ints *out)
{
    struct cli_ints list = {0, {0}};
    for (const char *p = text;;) {
        const char *end = p + strcspn(p, ",");
        if (list.n == 64)
            return fail(ERR_USAGE, "%s: at most 64 numbers; see %s --help", f->name, cli->program);
        TRY(take_int(cli, f, p, end, &list.v[list.n]));
        list.n++;
        if (!*end)
            break;
        p = end + 1;
    }
    *out = list;
    return OK;
}

static enum code take_choice(const struct cli *cli, const struct cli_flag *f, const char *text, int *out)
{
    int index = 0;
    for (const char *p = f->arg;; index++) {
        size_t n = strcspn(p, "|");
        if (n == strlen(text) && !strncmp(p, text, n)) {
            *out = index;
            return OK;
        }
        if (!p[n])
            break;
        p += n + 1;
    }
    return fail(ERR_USAGE, "%s: expected %s, found '%.60s'; see %s --help", f->name, f->arg, text, cli->program);
}

static enum code take(const struct cli *cli, const struct cli_flag *f, const char *text, void *slot)
{
    switch (f->type) {
    case CLI_SET:
        *(int *)slot = 1;
        return OK;
    case CLI_INT: {
        int64_t v;
        TRY(take_int(cli, f, text, text + strlen(text), &v));
        *(int64_t *)slot = v;
        return OK;
    }
    case CLI_FLOAT: {
        char *stop;
        double v = strtod(text, &stop);
        if (stop == text || *stop || !isfinite(v))
            return fail(ERR_USAGE, "%s: expected a number, found '%.60s'; see %s --help", f->name, text, cli->program);
        *(double *)slot = v;
        return OK;
    }
    case CLI_STR:
        *(const char **)slot = text;
        return OK;
    case CLI_INTS:
        return take_list(cli, f, text, slot);
    case CLI_CHOICE:
        return take_choice(cli, f, text, slot);
    }
    return fail(ERR_INTERNAL, "a table names a type that does not exist");
}

static enum code unknown_flag(const struct cli *cli, const char *word, size_t n)
{
    const char *names[MOST_FLAGS + 2] = {"--help", "--version"};
    char asked[80];
    int count = 2;
    for (int i = 0; i < cli->n_flags && count < MOST_FLAGS + 2; i++)
        names[count++] = cli->flags[i].name;
    snprintf(asked, sizeof asked, "%.*s", (int)(n < 79 ? n : 79), word);
    const char *near = config_nearest(asked, names, count);
    if (near)
        return fail(ERR_USAGE, "unknown flag %s; did you mean %s? (see %s --help)", asked, near, cli->program);
    return fail(ERR_USAGE, "unknown flag %s; see %s --help", asked, cli->program);
}

static void print_help(const struct cli *cli)
{
    printf("usage: %s %s\n\n%s%s", cli->program, cli->synopsis, cli->about,
           cli->about[0] && cli->about[strlen(cli->about) - 1] == '\n' ? "" : "\n");
    int width = (int)strlen("--version");
    for (int i = 0; i < cli->n_flags; i++) {
        int w = (int)(strlen(cli->flags[i].name) + (cli->flags[i].arg ? strlen(cli->flags[i].arg) + 1 : 0));
        width = w > width && w <= 30 ? w : width;
    }
    printf("\nflags:\n");
    for (int i = 0; i < cli->n_flags; i++) {
        const struct cli_flag *f = &cli->flags[i];
        int w = printf("  %s%s%s", f->name, f->arg ? " " : "", f->arg ? f->arg : "");
        if (w > width + 2)
            printf("\n%*s", width + 2, "");
        printf("%*s  %s\n", w > width + 2 ? 0 : width + 2 - w, "", f->help);
    }
    printf("  %-*s  this text\n  %-*s  the version\n", width, "--help", width, "--version");
}

static enum code check_words(const struct cli *cli, const struct cli_words *words)
{
    if (words->n > cli->max_words)
        return fail(ERR_USAGE, "unexpected argument '%.80s'; usage: %s %s (see %s --help)", words->v[cli->max_words],
                    cli->program, cli->synopsis, cli->program);
    if (words->n < cli->min_words)
        return fail(ERR_USAGE, "%d argument%s missing; usage: %s %s (see %s --help)", cli->min_words - words->n,
                    cli->min_words - words->n == 1 ? "" : "s", cli->program, cli->synopsis, cli->program);
    return OK;
}

enum code cli_parse(const struct cli *cli, int argc, char **argv, void *dst, struct cli_words *words, int *help_shown)
{
    const int room = (int)(sizeof words->v / sizeof words->v[0]);
    CHECK(cli->n_flags <= MOST_FLAGS && cli->max_words <= room);
    words->n = 0;
    *help_shown = 0;
    int flags_over = 0;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        if (flags_over || word[0] != '-' || !word[1]) {
            if (words->n == room)
                return fail(ERR_USAGE, "more than %d arguments; see %s --help", room, cli->program);
            words->v[words->n++] = word;
            continue;
        }
        if (!strcmp(word, "--")) {
            flags_over = 1;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "--version")) {
            if (word[2] == 'v')
                printf("%s %s\n", cli->program, GQAKIT_VERSION);
            else
                print_help(cli);
            *help_shown = 1;
            return OK;
        }
        size_t n = strcspn(word, "=");
        const struct cli_flag *f = NULL;
        for (int k = 0; k < cli->n_flags && !f; k++)
            if (strlen(cli->flags[k].name) == n && !strncmp(cli->flags[k].name, word, n))
                f = &cli->flags[k];
        if (!f)
            return unknown_flag(cli, word, n);
        const char *value = word[n] ? word + n + 1 : NULL;
        if (f->type == CLI_SET && value)
            return fail(ERR_USAGE, "%s takes no value; see %s --help", f->name, cli->program);
        if (f->type != CLI_SET && !value) {
            if (i + 1 >= argc)
                return fail(ERR_USAGE, "%s: its value %s is missing; see %s --help", f->name, f->arg ? f->arg : "",
                            cli->program);
            value = argv[++i];
        }
        TRY(take(cli, f, value, (char *)dst + f->offset));
    }
    return check_words(cli, words);
}
