/* Short names that the tables, figures and sentences share. */
#include "ablate.h"

#include <math.h>
#include <string.h>

const char *grouping_text(const char *grouping) { return strcmp(grouping, "consecutive") == 0 ? "" : " similar"; }

void ablate_percent(char out[24], double alpha) { snprintf(out, 24, "%.4g%%", 100 * alpha); }

/* The loss is named where the grid has more than one, and only with training. */
void ablate_start_name(const struct ablation *a, const struct summary *s, char out[96])
{
    int named = s->alpha > 0 && (a->config.loss.n > 1 || strcmp(s->loss, "ce") != 0);
    snprintf(out, 96, "%s%s%s%s", s->G == a->H ? "original" : s->method, grouping_text(s->grouping), named ? ", " : "", named ? s->loss : "");
}

void ablate_duration(char out[32], double seconds)
{
    if (!isfinite(seconds) || seconds < 0)
        snprintf(out, 32, "-");
    else if (seconds < 99.5)
        snprintf(out, 32, "%.0f s", seconds);
    else if (seconds < 5970)
        snprintf(out, 32, "%.0f min", seconds / 60);
    else if (seconds < 48 * 3600.0)
        snprintf(out, 32, "%.1f h", seconds / 3600);
    else
        snprintf(out, 32, "%.1f days", seconds / 86400);
}
