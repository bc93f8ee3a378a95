/* Where canonical row r lies in a file tensor. Within its piece:
 *   rotary   r = h * head + i:  i < rotary/2 -> 2i;  i < rotary -> 2(i - rotary/2) + 1;  else i     (GPT-J: pairs side by side)
 *   parts    first + r / inner * stride + r % inner                                                 (fused q|k|v, [H, 3, D])
 *   transposed: the result is a column of a file tensor [in, out]                                   (GPT-2's Conv1D)
 * A transposed tensor is walked in tiles that fit the first-level cache on both sides. */
#include "rows.h"

#include <string.h>

enum { TILE = 64 }; /* 64 rows of 64 elements of 4 bytes: 16 KiB here and 16 KiB there */

struct row_map row_map_make(const struct family_place *p, int64_t rows, int64_t length)
{
    struct row_map m = {.first = p->first, .inner = p->inner, .stride = p->stride, .head = p->head, .rotary = p->rotary, .piece = rows,
                        .length = length};
    if (p->pieces > 1) {
        CHECK(rows % p->pieces == 0 && strstr(p->name, "%d"));
        m.piece = rows / p->pieces;
    }
    if (p->transposed) {
        CHECK(p->nd == 2 && p->n[0] == length);
        m.width = p->n[1];
    }
    CHECK(m.first >= 0 && m.inner > 0 && m.stride >= m.inner && m.piece % m.inner == 0);
    CHECK(m.first + (m.piece / m.inner - 1) * m.stride + m.inner <= (p->transposed ? p->n[1] : p->n[0]));
    CHECK(m.rotary == 0 || (m.rotary % 2 == 0 && m.rotary > 0 && m.rotary <= m.head && m.piece % m.head == 0));
    return m;
}

int64_t row_map_at(const struct row_map *m, int64_t row, int64_t rows, int64_t *run)
{
    int64_t left = rows;
    if (m->rotary) {
        int64_t i = row % m->head;
        left = i < m->rotary ? 1 : m->head - i;
        if (i < m->rotary)
            row += (i < m->rotary / 2 ? 2 * i : 2 * i - m->rotary + 1) - i;
    }
    if (m->inner != m->stride && m->inner - row % m->inner < left) /* else there are no gaps at all */
        left = m->inner - row % m->inner;
    *run = left < rows ? left : rows;
    return m->first + row / m->inner * m->stride + row % m->inner;
}

/* ---- rows ----------------------------------------------------------------------------------------------------------- */

/* One of the two sides is written; which, says `gather`. */
static void straight(char *canonical, const struct row_map *m, char *file, int64_t row, int64_t rows, size_t bytes, int gather)
{
    size_t row_bytes = (size_t)m->length * bytes;
    for (int64_t done = 0, run; done < rows; done += run) {
        char *there = file + (size_t)row_map_at(m, row + done, rows - done, &run) * row_bytes, *here = canonical + (size_t)done * row_bytes;
        memcpy(gather ? here : there, gather ? there : here, (size_t)run * row_bytes);
    }
}

/* ---- columns -------------------------------------------------------------------------------------------------------- */

/* at[j]: column of canonical row j of this tile. */
#define TILES(TYPE)                                                                                                        \
    static void gather_##TYPE(TYPE *canonical, int64_t length, const TYPE *file, int64_t width, const int64_t *at, int n)  \
    {                                                                                                                      \
        for (int64_t k = 0; k < length; k += TILE)                                                                         \
            for (int j = 0; j < n; j++)                                                                                    \
                for (int64_t i = k; i < length && i < k + TILE; i++)                                                       \
                    canonical[j * length + i] = file[i * width + at[j]];                                                   \
    }                                                                                                                      \
    static void scatter_##TYPE(const TYPE *canonical, int64_t length, TYPE *file, int64_t width, const int64_t *at, int n) \
    {                                                                                                                      \
        for (int64_t k = 0; k < length; k += TILE)                                                                         \
            for (int64_t i = k; i < length && i < k + TILE; i++)                                                           \
                for (int j = 0; j < n; j++)                                                                                \
                    file[i * width + at[j]] = canonical[j * length + i];                                                   \
    }
TILES(uint16_t)
TILES(uint32_t)
TILES(uint64_t)

static void turned(char *canonical, const struct row_map *m, char *file, int64_t row, int64_t rows, size_t bytes, int gather)
{
    for (int64_t done = 0; done < rows; done += TILE) {
        int64_t at[TILE], run, l = m->length, w = m->width;
        int n = rows - done < TILE ? (int)(rows - done) : TILE;
        for (int j = 0; j < n; j++)
            at[j] = row_map_at(m, row + done + j, 1, &run);
        void *c = canonical + (size_t)(done * l) * bytes;
        switch (bytes) {
        case 2: gather ? gather_uint16_t(c, l, (void *)file, w, at, n) : scatter_uint16_t(c, l, (void *)file, w, at, n); break;
        case 4: gather ? gather_uint32_t(c, l, (void *)file, w, at, n) : scatter_uint32_t(c, l, (void *)file, w, at, n); break;
        case 8: gather ? gather_uint64_t(c, l, (void *)file, w, at, n) : scatter_uint64_t(c, l, (void *)file, w, at, n); break;
        default: CHECK(0);
        }
    }
}

void rows_gather(void *canonical, const struct row_map *m, const void *file, int64_t row, int64_t rows, size_t bytes)
{
    char *from; /* gathering writes only `canonical` */
    memcpy(&from, &file, sizeof from);
    (m->width ? turned : straight)(canonical, m, from, row, rows, bytes, 1);
}

void rows_scatter(void *file, const struct row_map *m, const void *canonical, int64_t row, int64_t rows, size_t bytes)
{
    char *from;
    memcpy(&from, &canonical, sizeof from);
    (m->width ? turned : straight)(from, m, file, row, rows, bytes, 0);
}
