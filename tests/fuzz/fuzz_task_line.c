/* A line of a task file (gqa-eval tasks): what is accepted has texts, and a right one among them. */
#include <string.h>

#include "eval/tasks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct task_item item;
    if (task_line_parse(&item, (const char *)data, n, "fuzz:1") != OK) {
        CHECK(!item.line && !item.text && item.n == 0);
        return 0;
    }
    CHECK(item.n >= (item.kind == TASK_MATCH ? 1 : 2) && item.n <= TASK_MOST_TEXTS && item.gold >= 0 && item.gold < item.n && item.context);
    for (int i = 0; i < item.n; i++)
        CHECK(strlen(item.text[i]) > 0);
    task_item_free(&item);
    return 0;
}
