/* The problems that every attention kernel must pass. */
#include "attention_device_case.h"

#define CAUSAL .causal = 1, .window_left = -1, .window_right = -1
#define FULL .causal = 0, .window_left = -1, .window_right = -1

static const struct attention_device_case short_cases[] = {
    {"one query", 2, 1, 1, 6, 3, 64, CAUSAL},
    {"seventeen", 2, 17, 17, 6, 3, 80, CAUSAL, .strided = 1},
    {"one whole tile", 1, 64, 64, 2, 2, 64, CAUSAL},
    {"ragged", 1, 129, 129, 6, 3, 64, CAUSAL, .strided = 1, .sharp = 1},
    {"ragged", 1, 129, 129, 2, 1, 128, CAUSAL, .strided = 1, .sharp = 1},
    {"ragged", 1, 130, 130, 2, 1, 96, CAUSAL, .strided = 1},
    {"ragged", 1, 70, 70, 3, 1, 40, CAUSAL},
    {"ragged", 1, 129, 129, 2, 1, 256, CAUSAL, .strided = 1, .sharp = 1},
    {"heads alone", 2, 33, 33, 3, 3, 128, CAUSAL},
    {"not causal", 1, 64, 70, 2, 1, 80, FULL, .strided = 1},
    {"later queries", 2, 17, 100, 4, 2, 128, CAUSAL, .q_offset = 83, .strided = 1},
    {"rows seeing nothing", 1, 140, 133, 6, 3, 64, CAUSAL, .q_offset = -70},
    {"rows seeing nothing", 1, 20, 5, 2, 1, 256, .causal = 1, .window_left = 3, .window_right = -1},
    {"window 0", 1, 70, 70, 3, 3, 64, .causal = 1, .window_left = 0, .window_right = -1},
    {"window 5", 1, 150, 150, 2, 1, 128, .causal = 1, .window_left = 5, .window_right = -1, .sharp = 1},
    {"window 70", 1, 200, 200, 4, 2, 64, .causal = 1, .window_left = 70, .window_right = -1},
    {"two-sided window", 1, 90, 80, 2, 1, 96, .causal = 0, .q_offset = -4, .window_left = 5, .window_right = 9},
    {"window right", 1, 75, 131, 2, 1, 64, .causal = 0, .window_left = -1, .window_right = 2},
    {"documents", 2, 129, 129, 2, 1, 64, CAUSAL, .documents = 3, .boundary = 64, .strided = 1},
    {"documents", 1, 150, 150, 2, 1, 128, CAUSAL, .documents = 3, .boundary = 128},
    {"documents, all keys", 1, 100, 100, 4, 2, 40, FULL, .documents = 4, .boundary = 7},
    {"documents within tiles", 1, 160, 160, 1, 1, 64, CAUSAL, .documents = 2, .boundary = 100},
    {"documents within tiles", 1, 260, 260, 1, 1, 64, CAUSAL, .documents = 2, .boundary = 150},
    /* One key more or less than a tile of 64 or 128 sees whole. */
    {"edge of the diagonal", 1, 150, 150, 1, 1, 64, CAUSAL, .q_offset = -2},
    {"edge of the diagonal", 1, 150, 150, 1, 1, 64, CAUSAL, .q_offset = -1},
    {"edge of the diagonal", 1, 150, 151, 1, 1, 64, CAUSAL, .q_offset = 1},
    {"edge of a window", 1, 260, 260, 1, 1, 64, .causal = 1, .window_left = 63, .window_right = -1},
    {"edge of a window", 1, 260, 260, 1, 1, 64, .causal = 1, .window_left = 64, .window_right = -1},
    {"edge of a window", 1, 260, 260, 1, 1, 64, .causal = 1, .window_left = 126, .window_right = -1},
    {"edge of a window", 1, 260, 260, 1, 1, 64, .causal = 1, .window_left = 127, .window_right = -1},
    {"edge to the right", 1, 140, 150, 1, 1, 64, .causal = 0, .window_left = -1, .window_right = 62},
    {"edge to the right", 1, 140, 150, 1, 1, 64, .causal = 0, .window_left = 63, .window_right = 63},
    {"edge to the right", 1, 140, 260, 1, 1, 64, .causal = 0, .window_left = -1, .window_right = 126},
    {"documents and window", 1, 140, 140, 2, 1, 80, .causal = 1, .window_left = 70, .window_right = -1, .documents = 3, .boundary = 50},
    {"alibi", 2, 33, 33, 6, 3, 64, CAUSAL, .alibi = 1, .strided = 1},
    {"alibi", 1, 131, 131, 6, 3, 80, CAUSAL, .alibi = 2, .strided = 1},
    {"alibi", 1, 129, 129, 4, 1, 128, CAUSAL, .alibi = 1, .sharp = 1},
    {"alibi", 1, 129, 129, 2, 1, 256, CAUSAL, .alibi = 2},
    {"alibi, three heads a group", 1, 67, 67, 6, 2, 128, CAUSAL, .alibi = 2},
    {"alibi, heads alone", 1, 75, 75, 3, 3, 40, CAUSAL, .alibi = 1},
    {"alibi, all keys", 1, 75, 131, 4, 2, 96, FULL, .alibi = 2, .strided = 1},
    {"alibi, later queries", 2, 17, 101, 4, 2, 128, CAUSAL, .q_offset = 84, .alibi = 1},
    {"alibi, rows seeing nothing", 1, 141, 133, 6, 3, 64, CAUSAL, .q_offset = -70, .alibi = 2},
    {"alibi, window", 1, 201, 201, 6, 3, 64, .causal = 1, .window_left = 70, .window_right = -1, .alibi = 1},
    {"alibi, window", 1, 151, 151, 2, 1, 128, .causal = 1, .window_left = 5, .window_right = -1, .alibi = 2},
    {"alibi, two-sided window", 1, 91, 80, 2, 1, 256, .causal = 0, .q_offset = -4, .window_left = 25, .window_right = 30, .alibi = 1},
    {"alibi, documents", 2, 129, 129, 6, 3, 80, CAUSAL, .documents = 3, .boundary = 64, .alibi = 2, .strided = 1},
    {"alibi, documents", 1, 151, 151, 2, 1, 128, CAUSAL, .documents = 3, .boundary = 90, .alibi = 1},
};

/* Every head width with every kind of mask and length. */
static int long_cases(struct attention_device_case *to)
{
    static const int widths[] = {8, 40, 64, 72, 80, 96, 128, 160, 256}, lengths[] = {1, 17, 64, 127, 128, 129, 257, 400};
    int n = 0;
    for (size_t w = 0; w < COUNT_OF(widths); w++)
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int T = lengths[l], D = widths[w];
            const struct attention_device_case kinds[] = {
                {"long", 2, T, T, 6, 3, D, CAUSAL, .strided = 1, .sharp = 1},
                {"long, all keys", 1, T, T + 37, 4, 1, D, FULL},
                {"long, window", 1, T, T + 20, 4, 2, D, .causal = 1, .q_offset = 20, .window_left = 65, .window_right = -1},
                {"long, documents", 2, T, T, 2, 1, D, CAUSAL, .documents = 3, .boundary = 64, .strided = 1},
                {"long, alibi", 1, T, T, 6, 3, D, CAUSAL, .alibi = 1},
            };
            for (size_t k = 0; k < COUNT_OF(kinds); k++)
                if (T > 1 || kinds[k].documents == 0)
                    to[n++] = kinds[k];
        }
    return n;
}

const struct attention_device_case *attention_device_cases(int *n)
{
    static struct attention_device_case all[COUNT_OF(short_cases) + 512];
    const char *s = getenv("GQAKIT_TEST_LONG");
    memcpy(all, short_cases, sizeof short_cases);
    *n = (int)COUNT_OF(short_cases);
    if (s != NULL && strcmp(s, "1") == 0)
        *n += long_cases(all + *n);
    return all;
}
