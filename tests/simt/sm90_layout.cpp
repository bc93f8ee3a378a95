/* sm90_layout.h says where each formula comes from; tests/device/test_simt_sm90.c checks them against addresses typed by hand. */
#include "sm90_layout.h"

uint32_t sm90_swizzle(uint32_t address, int width)
{
    uint32_t mask = width == 0 ? 0 : (uint32_t)width / 16 - 1;
    return address ^ ((address >> 7 & mask) << 4);
}

struct sm90_operand sm90_operand_decode(uint64_t descriptor)
{
    static const int widths[4] = {0, 128, 64, 32};
    struct sm90_operand o;
    o.start = (uint32_t)(descriptor & 0x3fff) << 4;
    o.lbo = (uint32_t)(descriptor >> 16 & 0x3fff) << 4;
    o.sbo = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    o.base_offset = (int)(descriptor >> 49 & 7);
    o.swizzle = widths[descriptor >> 62];
    return o;
}

uint32_t sm90_chunk_k_major(const struct sm90_operand *o, int mn, int k8)
{
    uint32_t row = o->swizzle == 0 ? 16 : (uint32_t)o->swizzle;
    uint32_t next = o->swizzle == 0 ? o->lbo : 16;
    uint32_t address = o->start + (uint32_t)(mn & 7) * row + (uint32_t)(mn >> 3) * o->sbo + (uint32_t)k8 * next;
    return sm90_swizzle(address, o->swizzle);
}

uint32_t sm90_chunk_mn_major(const struct sm90_operand *o, int mn8, int k)
{
    uint32_t row = o->swizzle == 0 ? 16 : (uint32_t)o->swizzle, chunks = row / 16;
    uint32_t panel = o->swizzle == 0 ? o->sbo : o->lbo, group = o->swizzle == 0 ? o->lbo : o->sbo;
    uint32_t address = o->start + (uint32_t)mn8 % chunks * 16 + (uint32_t)mn8 / chunks * panel + (uint32_t)(k & 7) * row + (uint32_t)(k >> 3) * group;
    return sm90_swizzle(address, o->swizzle);
}

uint32_t sm90_element(const struct sm90_operand *o, int mn_major, int mn, int k)
{
    if (mn_major)
        return sm90_chunk_mn_major(o, mn >> 3, k) + (uint32_t)(mn & 7) * 2;
    return sm90_chunk_k_major(o, mn, k >> 3) + (uint32_t)(k & 7) * 2;
}

const char *sm90_operand_fault(const struct sm90_operand *o, uint64_t descriptor, int mn_major, int rows)
{
    const uint64_t named = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
    if ((descriptor & ~named) != 0)
        return "bits outside the fields are set";
    if (o->swizzle == 0)
        return (o->base_offset != 0) ? "a base offset without a swizzle" : 0;
    if (o->base_offset != 0)
        return "base offsets other than 0 are not modelled";
    uint32_t width = (uint32_t)o->swizzle, in_pattern = o->start % (8 * width), used;
    if (in_pattern >= width)
        return "the start is not in row 0 of the swizzle's pattern (tiles are aligned to 8 x swizzle bytes)";
    used = mn_major ? (2 * (uint32_t)rows < width ? 2 * (uint32_t)rows : width) : 32;
    if (in_pattern + used > width)
        return "a row runs past the width of the swizzle";
    if (o->sbo % (8 * width) != 0 && (mn_major || rows > 8))
        return "SBO is not a multiple of 8 x swizzle bytes";
    if (mn_major && 2 * (uint32_t)rows > width && o->lbo % (8 * width) != 0)
        return "LBO is not a multiple of 8 x swizzle bytes";
    return 0;
}

void sm90_fragment_d(int thread, int i, int *row, int *column)
{
    int warp = thread >> 5, lane = thread & 31;
    *row = 16 * warp + (lane >> 2) + 8 * (i >> 1 & 1);
    *column = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
}

void sm90_fragment_a(int thread, int r, int h, int *row, int *k)
{
    int warp = thread >> 5, lane = thread & 31;
    *row = 16 * warp + (lane >> 2) + 8 * (r & 1);
    *k = 8 * (r >> 1) + 2 * (lane & 3) + h;
}

void sm90_fragment_stmatrix(int lane, int h, int *row, int *column)
{
    *row = lane >> 2;
    *column = 2 * (lane & 3) + h;
}
