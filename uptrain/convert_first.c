/* `gqa:` in a config: convert before training. The three programs never include each other, so this runs gqa-convert as a child:
 * the one beside our own executable, else the one in PATH. Its result stays in output_dir/converted/; output_dir/converted.json
 * {inputs} holds a hash of what it was made from, written last, so a half-made or outdated directory is made again. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run.h"
#include "signals.h"

struct command { const char *argv[32]; int n; char numbers[5][32]; int n_numbers; };

static void add(struct command *c, const char *flag, const char *value)
{
    if (!value)
        return;
    c->argv[c->n++] = flag;
    c->argv[c->n++] = value;
}

static void add_number(struct command *c, const char *flag, int64_t value)
{
    if (value == UNSET_INT)
        return;
    char *text = c->numbers[c->n_numbers++];
    snprintf(text, sizeof c->numbers[0], "%lld", (long long)value);
    add(c, flag, text);
}

static void make_command(struct command *c, const struct options *o, const char *program, const char *to)
{
    memset(c, 0, sizeof *c);
    c->argv[c->n++] = program;
    c->argv[c->n++] = o->model_path;
    c->argv[c->n++] = to;
    add_number(c, "--kv-heads", o->gqa.kv_heads);
    add(c, "--kv-budget", o->gqa.kv_budget);
    add(c, "--method", o->gqa.method);
    add(c, "--grouping", o->gqa.grouping);
    add(c, "--calibration", o->gqa.calibration);
    add_number(c, "--calibration-tokens", o->gqa.calibration_tokens);
    add_number(c, "--sequence-length", o->gqa.calibration && o->sequence_len <= CALIBRATION_LONGEST ? o->sequence_len : UNSET_INT); /* training sees the same positions */
    add(c, "--refit", o->gqa.calibration ? o->gqa.refit : NULL);
    add_number(c, "--seed", o->seed);
    add(c, "--moments", o->optimizer.moments == MOMENTS_AUTO ? "carry" : NULL);
    c->argv[c->n++] = "--force";
}

/* Hash of the arguments, of every file of the source and of the calibration's. */
static enum code inputs_hash(const struct command *cmd, const struct options *o, char hex[65])
{
    struct checkpoint *source;
    const char *const *names;
    TRY(ckpt_open(&source, o->model_path, NULL));
    struct sha256 *h = sha256_begin();
    enum code c = h ? OK : fail(ERR_MEMORY, "out of memory while hashing %s", o->model_path);
    int n = ckpt_files(source, &names);
    for (int i = 3; c == OK && i < cmd->n; i++)
        sha256_add(h, cmd->argv[i], strlen(cmd->argv[i]) + 1);
    for (int i = 0; c == OK && i < n; i++) {
        const char *from = ckpt_path(source); /* of a run: its newest step */
        char file[33], *path = io_is_dir(from) ? io_join(from, names[i]) : strdup(from);
        c = path ? xxh128_file(path, file) : fail(ERR_MEMORY, "out of memory while hashing %s", o->model_path);
        free(path);
        if (c == OK)
            sha256_add(h, file, 32);
    }
    char tokens[33];
    if (c == OK && o->gqa.calibration)
        c = fail_in(xxh128_file(o->gqa.calibration, tokens), "gqa.calibration");
    if (c == OK && o->gqa.calibration)
        sha256_add(h, tokens, 32);
    if (h)
        sha256_end(h, hex);
    ckpt_close(source);
    return c;
}

/* The child's results belong to stderr here: our stdout carries our own. With --quiet they are left out, its warnings stay. */
static enum code run_child(const struct command *c)
{
    pid_t pid = fork();
    if (pid < 0)
        return fail_errno(c->argv[0], "starting");
    if (pid == 0) {
        int null = log_is_quiet() ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;
        dup2(null >= 0 ? null : STDERR_FILENO, STDOUT_FILENO);
        execvp(c->argv[0], (char *const *)(uintptr_t)c->argv);
        fprintf(stderr, "gqa-uptrain: error: %s: %s; gqa needs gqa-convert beside gqa-uptrain or in PATH\n", c->argv[0], strerror(errno));
        _exit(127);
    }
    int status = 0;
    interrupt_child(pid);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return fail_errno(c->argv[0], "waiting for");
    interrupt_child(0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return OK;
    if (signals_stop())
        return fail(ERR_STOPPED, "stopped by signal %d while gqa-convert ran; nothing was trained yet, the same command starts again",
                    signals_stop());
    if (!WIFEXITED(status))
        return fail(ERR_INTERNAL, "gqa: gqa-convert was killed by signal %d", WTERMSIG(status));
    int code = WEXITSTATUS(status);
    return fail(code >= ERR_INTERNAL && code <= ERR_LOCKED ? (enum code)code : ERR_INTERNAL, "gqa: gqa-convert ended with exit code %d; its message stands above", code);
}

/* 1 when the record exists and holds this hash. */
static int recorded(const char *record, const char *hex)
{
    json_t *j = NULL;
    if (!io_exists(record) || json_read_file(record, 1 << 20, &j) != OK)
        return 0;
    const char *then = json_string_value(json_object_get(j, "inputs"));
    int same = then && !strcmp(then, hex);
    json_decref(j);
    return same;
}

static enum code holds_steps(const char *dir, int *found)
{
    char **names;
    int n;
    TRY(io_list(dir, &names, &n));
    *found = 0;
    for (int i = 0; i < n; i++)
        *found |= !strncmp(names[i], "step-", 5);
    io_names_free(names, n);
    return OK;
}

static enum code convert(struct run *r, const char *program, const char *record)
{
    struct command cmd;
    char hex[65];
    make_command(&cmd, &r->options, program, r->converted);
    TRY(inputs_hash(&cmd, &r->options, hex));
    int same = recorded(record, hex);
    if (same && io_is_dir(r->converted)) {
        log_info("gqa: %s is already converted", r->converted);
        return OK;
    }
    int steps;
    TRY(holds_steps(r->options.output_dir, &steps));
    if (steps && !same && io_exists(record))
        return fail(ERR_USAGE, "%s: %s already holds checkpoints of a model converted otherwise (gqa, seed or model.path has changed); restore the "
                    "config, or choose another output_dir", r->options.file, r->options.output_dir);
    if (unlink(record) != 0 && errno != ENOENT)
        return fail_errno(record, "removing");
    if (r->options.gqa.kv_budget)
        log_info("gqa: converting %s under a K/V budget of %s (%s)", r->options.model_path, r->options.gqa.kv_budget, r->options.gqa.method);
    else
        log_info("gqa: converting %s to %lld K/V heads (%s)", r->options.model_path, (long long)r->options.gqa.kv_heads, r->options.gqa.method);
    if (log_is_quiet()) /* no part of the hash */
        cmd.argv[cmd.n++] = "--quiet";
    TRY(run_child(&cmd));
    json_t *j = json_pack("{s:s, s:s}", "schema", "gqakit/converted/1", "inputs", hex);
    enum code c = j ? json_write_file(record, j) : fail(ERR_MEMORY, "%s: out of memory", record);
    json_decref(j);
    return c;
}

enum code convert_first(struct run *r)
{
    char *program = io_sibling_program("gqa-convert"), *record = io_join(r->options.output_dir, "converted.json");
    r->converted = io_join(r->options.output_dir, "converted");
    r->source_path = r->converted;
    enum code c = program && record && r->converted ? convert(r, program, record) : fail(ERR_MEMORY, "out of memory for a path");
    free(program);
    free(record);
    return c;
}
