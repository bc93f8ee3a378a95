/* setmaxnreg and stmatrix (PTX ISA, "setmaxnreg", "stmatrix").
 * Registers: a block starts with what __launch_bounds__(threads, 1) lets it have, 65536 / threads rounded down to a multiple of 8, per
 * thread. shrink gives to the block's pool, grow waits until the pool has enough. How many a thread really needs only ptxas knows. */
#include <stdio.h>
#include <string.h>

#include "sm90_model.h"

using namespace simt;

namespace {

struct {
    int now[SIMT_WARPS];
    int changes[SIMT_WARPS];
    int pool; /* registers nobody has, over 32 (a warp's registers per thread) */
    int ready;
    struct wait_list waiters;
} block;

int at_launch()
{
    int n = 65536 / threads() / 8 * 8;
    return n > 256 ? 256 : n;
}

void change(void *const *arg, unsigned mask)
{
    const int n = *(const int *)arg[__builtin_ctz(mask)], grow = n > 0, want = grow ? n : -n, warp = self()->warp;
    if (!block.ready) {
        for (int i = 0; i < SIMT_WARPS; i++)
            block.now[i] = at_launch();
        block.ready = 1;
    }
    if (mask != 0xffffffffu)
        fault(SIMT_MODEL, self(), "setmaxnreg by a part of the warp");
    if (grow ? want < block.now[warp] : want > block.now[warp]) {
        fault(SIMT_MODEL, self(), "registers_%s<%d>: the warp has %d registers per thread", grow ? "grow" : "shrink", want, block.now[warp]);
        return;
    }
    block.changes[warp]++;
    if (!grow) {
        block.pool += block.now[warp] - want;
        block.now[warp] = want;
        wake_all(&block.waiters);
    }
}

} // namespace

void sm90_registers_begin()
{
    memset(&block, 0, sizeof block);
}

void sm90_registers_end()
{
    for (int w = 0; block.ready && w < threads() / 32; w++)
        if (block.changes[w] != block.changes[w / 4 * 4] || block.now[w] != block.now[w / 4 * 4])
            fault(SIMT_DIVERGENT, NULL, "setmaxnreg: warp %d changed its registers %d times (to %d), warp %d of the same warpgroup %d times (to %d)",
                  w, block.changes[w], block.now[w], w / 4 * 4, block.changes[w / 4 * 4], block.now[w / 4 * 4]);
}

void sm90_registers(int n, int grow, const char *file, int line)
{
    if (!sm90_here("setmaxnreg", file, line))
        return;
    int mine = grow ? n : -n;
    collective("setmaxnreg", change, 0xffffffffu, &mine, 0);
    while (grow && block.now[self()->warp] < n) {
        int more = n - block.now[self()->warp];
        if (more <= block.pool) {
            block.pool -= more;
            block.now[self()->warp] = n;
        } else {
            sleep_in(&block.waiters, "registers (the pool of the block is empty: the sum over its warps exceeds what it started with)");
        }
    }
}

/* ---- stmatrix ---- */

namespace {

struct stmatrix_arg {
    uint32_t row;
    const uint32_t *r;
};

void stmatrix(void *const *arg, unsigned mask)
{
    if (mask != 0xffffffffu) {
        fault(SIMT_DIVERGENT, self(), "stmatrix by a part of the warp");
        return;
    }
    for (int m = 0; m < 4; m++) {
        uint16_t matrix[8][8];
        for (int i = 0; i < 32; i++)
            for (int h = 0, row, column; h < 2; h++) {
                sm90_fragment_stmatrix(i, h, &row, &column);
                matrix[row][column] = (uint16_t)(((const struct stmatrix_arg *)arg[i])->r[m] >> (16 * h));
            }
        for (int r = 0; r < 8; r++)
            store(lane(8 * m + r), shared(((const struct stmatrix_arg *)arg[8 * m + r])->row), matrix[r], 16, 16);
    }
}

} // namespace

void sm90_stmatrix(uint32_t row, const uint32_t *r, const char *file, int line)
{
    if (!sm90_here("stmatrix", file, line))
        return;
    struct stmatrix_arg mine = {row, r};
    collective("stmatrix", stmatrix, 0xffffffffu, &mine, 0);
}
