/* See harness.h. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/kernels.h"

static char temporary[512];
static char self_dir[1024] = "build/tests";

__attribute__((weak)) void harness_boot(int argc, char **argv)
{
    kernels_boot(argc, argv);
}

int harness_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    harness_boot(argc, argv);
    host_threads_set(0);
    /* Programs started by a test compute on the CPU, or where GQAKIT_TEST_DEVICE says. */
    const char *device = getenv("GQAKIT_TEST_DEVICE");
    setenv("GQAKIT_DEVICE", device && *device ? device : "cpu", 1);
    ssize_t k = readlink("/proc/self/exe", self_dir, sizeof self_dir - 1);
    if (k > 0) {
        self_dir[k] = 0;
        *strrchr(self_dir, '/') = 0;
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = _cmocka_run_group_tests(program_invocation_short_name, tests, n, NULL, NULL);
    if (temporary[0] && io_remove_tree(temporary) != OK)
        fprintf(stderr, "harness: %s\n", fail_text());
    return failed == 0 ? 0 : 1;
}

int harness_run(const struct CMUnitTest *tests, size_t n)
{
    char *argv[] = {program_invocation_name, NULL};
    return harness_main(1, argv, tests, n);
}

void harness_ok(enum code code, const char *expr, const char *file, int line)
{
    if (code != OK) {
        print_error("%s: refused with code %d: %s\n", expr, (int)code, fail_text());
        _fail(file, line);
    }
}

void harness_refused(enum code got, enum code want, const char *part, const char *expr, const char *file, int line)
{
    if (got != want || !strstr(fail_text(), part)) {
        print_error("%s: expected code %d and \"%s\", found code %d and \"%s\"\n", expr, (int)want, part, (int)got,
                    got == OK ? "" : fail_text());
        _fail(file, line);
    }
}

double nmse_f32(const float *got, const double *want, int64_t n)
{
    double error = 0.0, power = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)got[i] - want[i];
        error += d * d;
        power += want[i] * want[i];
    }
    return error / (power > 0.0 ? power : 1.0);
}

int compare_f32(const char *name, const float *got, const double *want, int64_t n, double rtol, double atol)
{
    int64_t bad = 0, worst = -1;
    size_t nonfinite = count_nonfinite(got, DT_F32, (size_t)n), want_nonfinite = count_nonfinite(want, DT_F64, (size_t)n);
    double excess = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double err = fabs((double)got[i] - want[i]), tol = atol + rtol * fabs(want[i]);
        if (err <= tol)
            continue;
        bad++;
        double over = isfinite(err) ? err / (tol > 0.0 ? tol : 1e-300) : (double)INFINITY;
        if (worst < 0 || over > excess) {
            worst = i;
            excess = over;
        }
    }
    if (bad == 0 && nonfinite == 0 && want_nonfinite == 0)
        return 1;
    print_error("%s: %lld of %lld elements differ (rtol %g, atol %g); non-finite: %zu got, %zu wanted; NMSE %.3g\n", name,
                (long long)bad, (long long)n, rtol, atol, nonfinite, want_nonfinite, nmse_f32(got, want, n));
    if (worst >= 0)
        print_error("%s: worst element %lld: got %.9g, want %.9g\n", name, (long long)worst, (double)got[worst], want[worst]);
    return 0;
}

int compare_view(const char *name, struct view got, const double *want, double rtol, double atol)
{
    CHECK(view_contiguous(got));
    int64_t n = view_count(got);
    float *wide = malloc((size_t)(n ? n : 1) * sizeof *wide);
    CHECK(wide);
    convert_elements(wide, DT_F32, got.p, got.dtype, (size_t)n);
    int same = compare_f32(name, wide, want, n, rtol, atol);
    free(wide);
    return same;
}

double worse_error(double worst, double error)
{
    return isfinite(error) && isfinite(worst) ? fmax(worst, error) : HUGE_VAL;
}

void fill_nan(float *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = NAN;
}

void fill_random(float *p, int64_t n, uint64_t seed)
{
    random_normal_f32(p, n, 0, 1.0f, seed, STREAM_TEST, 0);
}

void fill_random_f64(double *p, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        float x;
        random_normal_f32(&x, 1, i, 1.0f, seed, STREAM_TEST, 0);
        p[i] = (double)x;
    }
}

int64_t random_int(uint64_t seed, uint64_t i, int64_t lo, int64_t hi)
{
    return lo + (int64_t)(random_uniform(seed, STREAM_TEST, 1, i) * (double)(hi - lo + 1));
}

const char *temp_dir(void)
{
    if (!temporary[0]) {
        const char *top = getenv("TMPDIR");
        snprintf(temporary, sizeof temporary, "%s/gqakit-test-XXXXXX", top && *top ? top : "/tmp");
        if (!mkdtemp(temporary)) {
            perror(temporary);
            exit(1);
        }
    }
    return temporary;
}

char *temp_path(const char *name)
{
    return io_join(temp_dir(), name);
}

void temp_write(const char *name, const void *bytes, size_t n)
{
    char *path = temp_path(name);
    assert_ok(io_write_atomic(path, bytes, n));
    free(path);
}

char *data_path(const char *relative)
{
    const char *top = getenv("GQAKIT_DATA");
    char *path = io_join(top && *top ? top : "../shared/data", relative);
    if (io_exists(path))
        return path;
    print_message("skipped: %s is absent (set GQAKIT_DATA to the folder of real data)\n", path);
    free(path);
    return NULL;
}

struct text { char *p; size_t n; };

static void text_add(struct text *t, const char *bytes, size_t n)
{
    t->p = realloc(t->p, t->n + n + 1);
    CHECK(t->p);
    memcpy(t->p + t->n, bytes, n);
    t->n += n;
    t->p[t->n] = 0;
}

static void read_both(int out, int err, struct child *c)
{
    struct text text[2] = {{NULL, 0}, {NULL, 0}};
    struct pollfd fds[2] = {{out, POLLIN, 0}, {err, POLLIN, 0}};
    text_add(&text[0], "", 0);
    text_add(&text[1], "", 0);
    for (int open_fds = 2; open_fds > 0;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        for (int i = 0; i < 2; i++) {
            char block[4096];
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            ssize_t n = read(fds[i].fd, block, sizeof block);
            if (n > 0)
                text_add(&text[i], block, (size_t)n);
            else if (n == 0 || errno != EINTR) {
                fds[i].fd = -1;
                open_fds--;
            }
        }
    }
    c->out = text[0].p;
    c->err = text[1].p;
}

struct child child_run(const char *const *argv, const char *const *env)
{
    struct child c = {-1, NULL, NULL};
    int out[2], err[2];
    CHECK(pipe(out) == 0 && pipe(err) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_RDONLY);
        dup2(null, 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        for (int i = 0; i < 2; i++) {
            close(out[i]);
            close(err[i]);
        }
        for (; env && *env; env++)
            putenv((char *)(uintptr_t)*env);
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        fprintf(stderr, "cannot run %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    read_both(out[0], err[0], &c);
    close(out[0]);
    close(err[0]);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    c.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return c;
}

void child_free(struct child *c)
{
    free(c->out);
    free(c->err);
    c->out = c->err = NULL;
}

char *program_path(const char *name)
{
    char *up = io_join(self_dir, ".."), *path = io_join(up, name);
    free(up);
    return path;
}
