/* Running the sibling programs. Each step of an ablation is its own process: memory is returned between cells, a crash of one
 * cell cannot take the others along, and every step can be repeated by hand from its log. */
#include "ablate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct sink { char *bytes; size_t n, capacity; };

static int sink_add(struct sink *s, const char *bytes, size_t n)
{
    if (s->n + n + 1 > s->capacity) {
        size_t more = (s->n + n + 1) * 2;
        char *p = realloc(s->bytes, more);
        if (!p)
            return 0;
        s->bytes = p;
        s->capacity = more;
    }
    memcpy(s->bytes + s->n, bytes, n);
    s->n += n;
    s->bytes[s->n] = 0;
    return 1;
}

static void exec_child(const char *path, char *const *argv, int out, int err)
{
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (strchr(path, '/'))
        execv(path, argv);
    else
        execvp(path, argv);
    dprintf(STDERR_FILENO, "%s: cannot be run: %s\n", path, strerror(errno));
    _exit(127);
}

/* Passes stderr on and keeps its tail; collects stdout. Returns when both are closed. */
static void pump(int out, int err, struct sink *captured, struct sink *said, int log)
{
    struct pollfd fds[2] = { { out, POLLIN, 0 }, { err, POLLIN, 0 } };
    char buffer[16384];
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return;
        for (int i = 0; i < 2; i++) {
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            ssize_t n = read(fds[i].fd, buffer, sizeof buffer);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0) {
                fds[i].fd = -1;
            } else if (i == 0) {
                sink_add(captured, buffer, (size_t)n);
            } else {
                if (said->n > 65536)
                    said->n = 0;
                sink_add(said, buffer, (size_t)n);
                fwrite(buffer, 1, (size_t)n, stderr);
                if (log >= 0 && write(log, buffer, (size_t)n) < 0)
                    log = -1;
            }
        }
    }
}

/* The last non-empty line, without a leading "PROGRAM: error: ". */
static const char *last_line(struct sink *s)
{
    if (!s->bytes)
        return "it said nothing";
    while (s->n > 0 && (s->bytes[s->n - 1] == '\n' || s->bytes[s->n - 1] == '\r'))
        s->bytes[--s->n] = 0;
    char *line = s->bytes + s->n;
    while (line > s->bytes && line[-1] != '\n' && line[-1] != '\r')
        line--;
    char *error = strstr(line, "error: ");
    return error ? error + 7 : line;
}

static enum code code_of_status(int status)
{
    if (WIFSIGNALED(status))
        return WTERMSIG(status) == SIGINT || WTERMSIG(status) == SIGTERM ? ERR_STOPPED : ERR_INTERNAL;
    int code = WEXITSTATUS(status);
    return code == 0 ? OK : (code >= ERR_INTERNAL && code <= ERR_LOCKED) || code == ERR_STOPPED ? (enum code)code : ERR_INTERNAL;
}

static volatile sig_atomic_t running_child; /* one at a time; read by the handler below */
static void forward_signal(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    if (running_child > 0 && info->si_code <= 0) /* a terminal sends to the child itself */
        kill((pid_t)running_child, signal_number);
}

static enum code run_child(const char *path, char *const *argv, const char *log, char **out)
{
    const char *program = argv[0];
    int o[2] = { -1, -1 }, e[2] = { -1, -1 };
    if (pipe2(o, O_CLOEXEC) != 0)
        return fail_errno(program, "cannot make a pipe");
    if (pipe2(e, O_CLOEXEC) != 0) {
        enum code c = fail_errno(program, "cannot make a pipe");
        close(o[0]);
        close(o[1]);
        return c;
    }
    struct sigaction forward = { .sa_sigaction = forward_signal, .sa_flags = SA_SIGINFO }, old_int, old_term;
    sigaction(SIGINT, &forward, &old_int);
    sigaction(SIGTERM, &forward, &old_term);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        exec_child(path, argv, o[1], e[1]);
    running_child = pid;
    close(o[1]);
    close(e[1]);
    struct sink captured = { 0 }, said = { 0 };
    int status = 0, fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    enum code c = pid < 0 ? fail_errno(program, "cannot be started") : OK;
    if (pid > 0) {
        pump(o[0], e[0], &captured, &said, fd);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        c = code_of_status(status);
        if (c != OK)
            c = fail(c, "%s: %s", program, c == ERR_STOPPED && said.n == 0 ? "stopped by a signal" : last_line(&said));
    }
    running_child = 0;
    sigaction(SIGINT, &old_int, NULL);
    sigaction(SIGTERM, &old_term, NULL);
    close(o[0]);
    close(e[0]);
    if (fd >= 0)
        close(fd);
    if (c == OK && out) {
        *out = captured.bytes ? captured.bytes : calloc(1, 1);
        captured.bytes = NULL;
        c = *out ? OK : fail(ERR_MEMORY, "%s: out of memory for its output", program);
    }
    free(captured.bytes);
    free(said.bytes);
    return c;
}

enum code child_program(const char *program, const char *const *arguments, const char *log, char **out)
{
    char *path = io_sibling_program(program), *argv[64];
    int n = 0;
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory for its path", program);
    argv[n++] = (char *)(uintptr_t)program;
    for (; *arguments; arguments++) {
        CHECK(n < 63);
        argv[n++] = (char *)(uintptr_t)*arguments;
    }
    argv[n] = NULL;
    enum code c = run_child(path, argv, log, out);
    free(path);
    return c;
}
