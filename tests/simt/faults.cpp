/* Reports: where a fault happened and what it is. The first few of each kind and line are printed, all are counted. */
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "state.h"

namespace simt {

static const char *const kind_names[SIMT_FAULT_KINDS] = {"RACE", "OUT OF BOUNDS", "UNINITIALISED", "MISALIGNED", "ASYNC", "DIVERGENT", "DEADLOCK", "LAUNCH", "MODEL"};
#define PRINTED_PER_KIND 4
static int counts[SIMT_FAULT_KINDS], printed[SIMT_FAULT_KINDS];
static uint32_t printed_where[SIMT_FAULT_KINDS][PRINTED_PER_KIND];
static int quiet;

/* A plain access is known by its code address: binutils' addr2line, which comes with g++, says the line. Remembered, since one wide
 * access may be at fault in every word. */
const char *source_of(uint32_t where)
{
    static struct { uint32_t where; char text[256]; } known[64];
    char *out = known[where % 64].text;
    const size_t size = sizeof known[0].text;
    if (known[where % 64].where == where && out[0] != 0)
        return out;
    known[where % 64].where = where;
    if (where & WHERE_LINE) {
        snprintf(out, size, "line %u", where & ~WHERE_LINE);
        return out;
    }
    snprintf(out, size, "program+0x%x", where);
    char command[160], line[512];
    snprintf(command, sizeof command, "addr2line -i -e /proc/%d/exe 0x%x 2>/dev/null", (int)getpid(), where);
    FILE *f = popen(command, "r");
    if (f == NULL)
        return out;
    size_t used = 0;
    /* Innermost first; inlined callers follow. */
    for (int i = 0; i < 3 && fgets(line, sizeof line, f) != NULL && line[0] != '?'; i++) {
        line[strcspn(line, " \n")] = 0;
        const char *slash = strrchr(line, '/');
        used += (size_t)snprintf(out + used, used < size ? size - used : 0, "%s%s", i > 0 ? " < " : "", slash != NULL ? slash + 1 : line);
        if (used >= size)
            break;
    }
    while (fgets(line, sizeof line, f) != NULL) {}
    pclose(f);
    return out;
}

int fault_prints(enum simt_fault_kind kind, const struct fiber *who)
{
    if (quiet || printed[kind] == PRINTED_PER_KIND)
        return 0;
    const uint32_t where = where_now(who);
    for (int i = 0; i < printed[kind]; i++)
        if (printed_where[kind][i] == where)
            return 0;
    return 1;
}

void fault(enum simt_fault_kind kind, struct fiber *who, const char *format, ...)
{
    counts[kind]++;
    if (!fault_prints(kind, who))
        return;
    printed_where[kind][printed[kind]++] = where_now(who);
    char sentence[1600];
    va_list list;
    va_start(list, format);
    vsnprintf(sentence, sizeof sentence, format, list);
    va_end(list);
    fprintf(stderr, "simt: %s in %s", kind_names[kind], now.name != NULL ? now.name : "host code");
    if (who != NULL)
        fprintf(stderr, ", block (%u,%u,%u), thread (%u,%u,%u) = warp %d lane %d, %s%s%s", now.block_index.x, now.block_index.y, now.block_index.z,
                who->x, who->y, who->z, who->warp, who->lane, source_of(where_now(who)), access_pc == NULL && who->file != NULL ? " of " : "",
                access_pc == NULL && who->file != NULL ? who->file : "");
    fprintf(stderr, ": %s\n", sentence);
}

} // namespace simt

using namespace simt;

int simt_faults(void)
{
    int sum = 0;
    for (int k = 0; k < SIMT_FAULT_KINDS; k++) {
        if (counts[k] > 0 && !quiet)
            fprintf(stderr, "simt: %d x %s\n", counts[k], kind_names[k]);
        sum += counts[k];
        counts[k] = printed[k] = 0;
    }
    return sum;
}

int simt_fault_count(enum simt_fault_kind kind) { return counts[kind]; }
void simt_quiet(int on) { quiet = on; }
