/* Any bytes as a README.md: what is taken over is whole lines of the front matter. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/card.h"
#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *exact = malloc(n ? n : 1);
    CHECK(exact);
    if (n)
        memcpy(exact, data, n);
    char *lines = card_front_lines(exact, n);
    CHECK(lines && strlen(lines) <= n + 1 && (!*lines || lines[strlen(lines) - 1] == '\n'));
    CHECK(!strstr(lines, "\n---\n"));
    free(lines);
    free(exact);
    return 0;
}
