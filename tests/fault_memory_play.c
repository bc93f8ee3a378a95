/* Scenes in which memory runs out; see faults.h. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"

enum { MOST = 5000 };

static int temporaries(const char *dir)
{
    char **names;
    int n, found = 0;
    if (!dir || !io_is_dir(dir))
        return 0;
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++)
        found += strstr(names[i], ".tmp-") != NULL;
    io_names_free(names, n);
    return found;
}

/* Exit status, 128 + signal; *made: allocations. */
static int run(const struct memory_scene *s, long at, int all_after, long *made, const char *err)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (int n = 0; n < 5; n++) /* cmocka's handlers would run the rest of the test in the child */
            signal((int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS}[n], SIG_DFL);
        int out = open("/dev/null", O_WRONLY), to = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(out, 1);
        dup2(to, 2);
        alarm(60);
        fault_memory_arm(at, all_after);
        int status = (int)s->act();
        *made = fault_memory_calls();
        fault_memory_arm(0, 0);
        if (status)
            fprintf(stderr, "%s\n", fail_text());
        fflush(NULL);
        _exit(status);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void fault_memory_play(const struct memory_scene *s)
{
    long *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *err = temp_path("memory.txt");
    int said[80] = {0}, crashes = 0, left = 0, cases = 0, wordless = 0;
    s->before();
    *made = 0;
    int fine = run(s, 0, 0, made, err);
    if (fine) {
        char *text = NULL;
        size_t n = 0;
        assert_ok(io_read_all(err, 1 << 20, &text, &n));
        print_error("%s: status %d with all the memory it wants: %s\n", s->name, fine, text);
    }
    assert_int_equal(fine, 0);
    long total = *made, last = total < MOST ? total : MOST, stride = soak() ? 1 : 1 + last / s->cases;
    for (int all = 0; all < 2; all++)
        for (long k = 1 + all * (stride / 2); k <= last; k += all ? 3 * stride : stride) {
            const char *only = getenv("GQAKIT_AT"); /* one allocation, to look closer */
            if (only && atol(only) != k)
                continue;
            s->before();
            int status = run(s, k, all, made, err), dirty = all ? 0 : temporaries(s->dir); /* without any memory nothing can be tidied */
            char *text = NULL;
            size_t n = 0;
            if (io_read_all(err, 1 << 20, &text, &n) != OK)
                n = 0;
            int bad = status < 0 || status > 75 || status == 1;
            if (bad || dirty)
                print_error("%s, allocation %ld%s: status %d, left %d: %s\n", s->name, k, all ? " and all after" : "", status, dirty, text ? text : "");
            crashes += bad;
            left += dirty;
            wordless += status && n < 8;
            said[status >= 0 && status < 80 ? status : 79]++;
            free(text);
            cases++;
            if (!bad && s->check)
                s->check(status);
        }
    print_message("  %s: %ld allocations, %d cases: %d done all the same, %d out of memory, %d other refusals; crashes %d, temporaries left %d, without a word %d\n",
                  s->name, total, cases, said[0], said[ERR_MEMORY], cases - said[0] - said[ERR_MEMORY] - crashes, crashes, left, wordless);
    assert_int_equal(crashes + left + wordless, 0);
    munmap(made, 4096);
    free(err);
}
