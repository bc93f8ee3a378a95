/* See damage.h. */
#include "damage.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int damage_soak(void)
{
    const char *s = getenv("GQAKIT_SOAK");
    return s && *s && strcmp(s, "0");
}

void damage_put(const char *name, const void *bytes, size_t n)
{
    char *path = temp_path(name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CHECK(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    close(fd);
    free(path);
}

char *damage_folder(const char *name)
{
    char *path = temp_path(name);
    *strrchr(path, '/') = 0;
    return path;
}

void damage_text(const char *name, const char *text) { damage_put(name, text, strlen(text)); }

uint64_t damage_add(uint64_t sum, const void *bytes, size_t n) { return (sum ^ hash64(bytes, n)) * 0x9E3779B97F4A7C15u + n; }

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t good_sum(const struct damage_subject *s)
{
    uint64_t sum = 0;
    enum code c = s->read(s->file, &sum);
    if (c != OK)
        print_error("%s: the good file is refused: %s\n", s->name, fail_text());
    assert_int_equal(c, OK);
    return sum;
}

static void one(const struct damage_subject *s, uint64_t good, enum damage_promise promise, const char *what, int64_t where, struct damage_count *count)
{
    uint64_t sum = 0;
    double before = cpu_seconds();
    enum code c = s->read(s->file, &sum);
    double spent = cpu_seconds() - before;
    count->cases++;
    count->slowest = spent > count->slowest ? spent : count->slowest;
    count->refused += c != OK;
    count->same += c == OK && sum == good;
    count->other += c == OK && sum != good;
    int right = c == OK ? promise == DAMAGE_PARTIAL || sum == good : (c == ERR_INPUT || c == ERR_USAGE || c == ERR_UNSUPPORTED) && *fail_text() && !strchr(fail_text(), '\n');
    if (!right || spent > 1)
        print_error("%s, %s %lld: code %d, %.2f s%s: %s\n", s->name, what, (long long)where, (int)c, spent, c == OK ? ", reads as another file" : "", fail_text());
    assert_true(right);
    assert_true(spent <= 1);
}

struct damage_count damage_cut(const struct damage_subject *s, int64_t step)
{
    struct damage_count count = {0};
    uint64_t good = good_sum(s);
    char *path = temp_path(s->file), *bytes;
    size_t n;
    assert_ok(io_read_all(path, 1 << 28, &bytes, &n));
    for (int64_t cut = (int64_t)n - 1; cut >= 0; cut -= step) {
        assert_int_equal(truncate(path, cut), 0);
        one(s, good, s->cut, "cut to", cut, &count);
    }
    damage_put(s->file, bytes, n);
    assert_true(good_sum(s) == good);
    free(bytes);
    free(path);
    return count;
}

static void flip(int fd, int64_t bit)
{
    unsigned char byte;
    assert_true(pread(fd, &byte, 1, bit / 8) == 1);
    byte ^= (unsigned char)(1 << bit % 8);
    assert_true(pwrite(fd, &byte, 1, bit / 8) == 1);
}

static int open_subject(const struct damage_subject *s, int64_t *bytes)
{
    char *path = temp_path(s->file);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    *bytes = io_file_bytes(path);
    free(path);
    return fd;
}

struct damage_count damage_flip(const struct damage_subject *s, int64_t from, int64_t to, int64_t step)
{
    struct damage_count count = {0};
    int64_t bytes;
    uint64_t good = good_sum(s);
    int fd = open_subject(s, &bytes);
    for (int64_t bit = from; bit < (to < 0 ? 8 * bytes : to); bit += step) {
        flip(fd, bit);
        one(s, good, s->flip, "bit", bit, &count);
        flip(fd, bit);
    }
    close(fd);
    assert_true(good_sum(s) == good);
    return count;
}

struct damage_count damage_flip_random(const struct damage_subject *s, int64_t from, int64_t to, int64_t n, uint64_t seed)
{
    struct damage_count count = {0};
    int64_t bytes;
    uint64_t good = good_sum(s);
    int fd = open_subject(s, &bytes);
    for (int64_t i = 0; i < n; i++) {
        int64_t bit = random_int(seed, (uint64_t)i, 8 * from, 8 * to - 1);
        flip(fd, bit);
        one(s, good, s->flip, "bit", bit, &count);
        flip(fd, bit);
    }
    close(fd);
    assert_true(good_sum(s) == good);
    return count;
}

void damage_print(const char *what, const struct damage_subject *s, const struct damage_count *c)
{
    printf("%-28s %-10s %7lld cases: %lld refused, %lld read the same, %lld read as another file; slowest %.3f s\n", s->name, what, (long long)c->cases,
           (long long)c->refused, (long long)c->same, (long long)c->other, c->slowest);
}
