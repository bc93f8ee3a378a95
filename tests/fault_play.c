/* Scenes under faults; see faults.h. */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"

int soak(void)
{
    const char *s = getenv("GQAKIT_SOAK");
    return s && atoi(s) > 0;
}

int soak_count(int ci, int n) { return soak() ? n : ci; }

int fault_entries(const char *dir)
{
    char **names;
    int n;
    assert_ok(io_list(dir, &names, &n));
    io_names_free(names, n);
    return n;
}

static char said[2048]; /* the tail of what the last act wrote to stderr */

int fault_run(const struct scene *s, enum fault mode, int at)
{
    char *err = temp_path("stderr.txt");
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (int n = 0; n < 5; n++) /* cmocka's handlers would run the rest of the test in the child */
            signal((int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS}[n], SIG_DFL);
        int out = open("/dev/null", O_WRONLY), to = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(out, 1);
        dup2(to, 2);
        fault_arm(mode, at);
        int status = (int)s->act();
        int reached = fault_fired();
        fault_arm(FAULT_NONE, 0);
        if (status)
            fprintf(stderr, "%s\n", fail_text());
        fflush(NULL);
        _exit(reached ? status : 100 + status);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    char *text = NULL;
    size_t n = 0;
    said[0] = 0;
    if (io_read_all(err, 1 << 20, &text, &n) == OK)
        snprintf(said, sizeof said, "%s", n > 2000 ? text + n - 2000 : text);
    free(text);
    free(err);
    if (WIFSIGNALED(status)) {
        if (WTERMSIG(status) != SIGKILL)
            print_error("%s, %s at call %d: died of signal %d; it said: %s\n", s->name, FAULT_NAMES[mode], at, WTERMSIG(status), said);
        assert_int_equal(WTERMSIG(status), SIGKILL);
        return -1;
    }
    return WEXITSTATUS(status);
}

/* A step larger than 1 visits other calls under other faults. */
static int stride_of(const struct scene *s, enum fault m)
{
    int stride = soak() ? 1 : s->stride ? s->stride : 3;
    return m == FAULT_KILL ? (stride + 2) / 3 : stride;
}

static void judge(const struct scene *s, enum fault m, int at, int status, int new)
{
    const char *name = FAULT_NAMES[m];
    if (m == FAULT_KILL || m == FAULT_TORN)
        assert_int_equal(status, -1);
    else if (m == FAULT_SHORT || m == FAULT_EINTR) {
        if (status != OK || !new || fault_entries(s->dir) != s->left)
            print_error("%s, %s at call %d: status %d, new %d, %d entries: %s\n", s->name, name, at, status, new, fault_entries(s->dir), said);
        assert_true(status == OK && new && fault_entries(s->dir) == s->left);
    } else {
        int right = status == OK ? new : status == ERR_IO || (m == FAULT_READ_EIO && status > 0);
        if (s->space && (m == FAULT_ENOSPC || m == FAULT_EDQUOT) && status == ERR_IO && !new)
            right = right && strstr(said, " needed, ") && strstr(said, " free") && strchr(said, '/');
        if (!right)
            print_error("%s, %s at call %d: status %d, new %d: %s\n", s->name, name, at, status, new, said);
        assert_true(right);
    }
}

void fault_play(const struct scene *s)
{
    int points = 0, all = 0;
    for (enum fault m = FAULT_KILL; m < FAULTS; m++) {
        int olds = 0, news = 0, leftovers = 0, stride = stride_of(s, m), tried = 0, k;
        for (k = 1 + (int)m % stride;; k += stride) {
            s->before();
            int status = fault_run(s, m, k);
            if (status >= 100) {
                if (status != 100)
                    print_error("%s, %s: status %d without a fault: %s\n", s->name, FAULT_NAMES[m], status - 100, said);
                assert_int_equal(status, 100);
                assert_int_equal(fault_entries(s->dir), s->left);
                break;
            }
            int new = s->after();
            news += new;
            olds += !new;
            tried++;
            if (m == FAULT_KILL || m == FAULT_TORN || !s->same)
                judge(s, m, k, status, s->same ? 1 : new);
            else
                judge(s, m, k, status, 1);
            if (m != FAULT_KILL && m != FAULT_TORN)
                leftovers += fault_entries(s->dir) != s->left - (s->fresh && !new);
            if (s->heals && k % 3 == 0) {
                assert_ok(s->act());
                assert_true(s->after());
                assert_int_equal(fault_entries(s->dir), s->left);
            }
        }
        points = m == FAULT_KILL ? k - 1 : points;
        all += tried;
        print_message("  %-12s %4d of about %d calls: old %d, new %d; left over where removing was refused: %d\n", FAULT_NAMES[m], tried,
                      m == FAULT_READ_EIO ? k - 1 : points, olds, news, leftovers);
        assert_true(leftovers <= (soak() ? 24 : 8)); /* only where removing itself was refused */
    }
    print_message("  %s: %d cases, 0 failures\n", s->name, all);
    assert_true(points > 8);
}
