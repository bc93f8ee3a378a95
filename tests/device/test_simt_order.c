/* The race detector against brute force. Random programs of 96 threads (three warps) touch shared memory, mostly each its own words,
 * and meet in __syncthreads, whole and half warps, named barriers and bar.arrive. Whether a program has a race depends on neither the
 * order of threads nor luck: here it is decided with a full vector clock per thread and all pairs of accesses kept. The executor must
 * report a race for exactly the programs that have one. Runs in the executor alone. */
#include "device_case.h"
#include "simt_host.h"
#include "simt/probe_kernels.h"

#define N PROBE_SCRIPT_THREADS
#define PHASES PROBE_SCRIPT_PHASES
#define PER_PHASE PROBE_SCRIPT_PER_PHASE

struct event { int thread, time, write, atomic; };
static struct event events[N * 4][PHASES * PER_PHASE * N]; /* by byte */
static int n_events[N * 4];
static int clocks[N][N]; /* what each thread knows of the others; [t][t] is its own time */

static uint64_t draws;
static int draw(uint64_t program, int lo, int hi) { return (int)random_int(program, draws++, lo, hi); }

static void meet(const int *in, const int *out) /* threads with in[t] tell, threads with out[t] learn */
{
    int all[N] = {0};
    for (int t = 0; t < N; t++)
        for (int u = 0; in[t] && u < N; u++)
            all[u] = all[u] < clocks[t][u] ? clocks[t][u] : all[u];
    for (int t = 0; t < N; t++) {
        for (int u = 0; out[t] && u < N; u++)
            clocks[t][u] = clocks[t][u] < all[u] ? all[u] : clocks[t][u];
        clocks[t][t] += in[t] || out[t];
    }
}

static void synchronise(int how)
{
    int in[N], out[N];
    for (int part = 0; part < 6; part++) {
        for (int t = 0; t < N; t++) {
            const int warp = t / 32, half = t / 16;
            in[t] = out[t] = how == PROBE_SYNC_BLOCK ? part == 0 : how == PROBE_SYNC_WARP ? part == warp : how == PROBE_SYNC_HALF ? part == half
                             : how == PROBE_SYNC_NAMED ? part == 0 && warp < 2 : 0;
            if (how == PROBE_SYNC_ARRIVE && part == 0) { /* warps 0 and 2 arrive, warp 1 waits */
                in[t] = 1;
                out[t] = warp == 1;
            }
        }
        meet(in, out);
    }
}

static int touches(int word, int kind, int first, int bytes, int thread)
{
    int race = 0;
    for (int b = 4 * word + first; b < 4 * word + first + bytes; b++) {
        const struct event e = {thread, clocks[thread][thread], kind != PROBE_READ, kind == PROBE_ATOMIC};
        for (int i = 0; i < n_events[b]; i++) {
            const struct event *o = &events[b][i];
            race |= o->thread != thread && (o->write || e.write) && !(o->atomic && e.atomic) && clocks[thread][o->thread] < o->time;
        }
        events[b][n_events[b]++] = e;
    }
    return race;
}

/* Fills the script; 1: it has a race. */
static int program_make(int32_t *script, uint64_t program)
{
    int race = 0, cross = draw(program, 0, 3);
    memset(n_events, 0, sizeof n_events);
    memset(clocks, 0, sizeof clocks);
    for (int t = 0; t < N; t++)
        clocks[t][t] = 1;
    for (int p = 0; p < PHASES; p++) {
        const int how = draw(program, 0, 7) ? draw(program, PROBE_SYNC_NONE, PROBE_SYNC_ARRIVE) : PROBE_SYNC_NONE;
        for (int i = 0; i < PER_PHASE; i++)
            for (int t = 0; t < N; t++) {
                int word = t, kind = draw(program, PROBE_NOTHING, PROBE_WRITE);
                if (cross > 0 && draw(program, 0, N * PHASES * PER_PHASE / 4) == 0) {
                    const int far = draw(program, 0, 2);
                    word = far == 0 ? t ^ 1 : far == 1 ? t ^ 16 : draw(program, 0, N - 1);
                    kind = draw(program, PROBE_READ, PROBE_ATOMIC);
                    cross--;
                }
                const int bytes = kind == PROBE_ATOMIC ? 4 : 1 << draw(program, 0, 2), first = bytes == 4 ? 0 : bytes * draw(program, 0, 4 / bytes - 1);
                *script++ = kind | bytes << 4 | first << 8 | word << 12;
                if (kind != PROBE_NOTHING)
                    race |= touches(word, kind, first, bytes, t);
            }
        *script++ = how;
        synchronise(how);
    }
    return race;
}

static void test_programs(void **state)
{
    (void)state;
    enum { WORDS = PHASES * (N * PER_PHASE + 1), PROGRAMS = 2000 };
    static int32_t script[WORDS];
    int with = 0, missed = 0, invented = 0;
    simt_quiet(1);
    for (uint64_t program = 0; program < PROGRAMS; program++) {
        draws = 0;
        const int race = program_make(script, program);
        void *p = simt_alloc(sizeof script, 0);
        simt_copy(p, script, sizeof script);
        simt_set_order("frx"[program % 3], (unsigned)program);
        assert_ok(probe_script(case_device(), p));
        const int found = simt_fault_count(SIMT_RACE) > 0;
        assert_int_equal(simt_faults() > 0, found);
        if (found != race)
            print_error("program %d: race %d, reported %d\n", (int)program, race, found);
        with += race, missed += race && !found, invented += found && !race;
        simt_free(p);
    }
    simt_quiet(0);
    simt_set_order('f', 0);
    printf("%d programs, %d with a race; %d missed, %d invented\n", PROGRAMS, with, missed, invented);
    assert_in_range(with, PROGRAMS / 5, PROGRAMS * 4 / 5);
    assert_int_equal(missed + invented, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_programs)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
