/* Private to the report: tables written once, as Markdown and as HTML. */
#ifndef GQAKIT_EVAL_ABLATE_TABLES_H
#define GQAKIT_EVAL_ABLATE_TABLES_H

#include "ablate.h"

/* A table being written: begin with its heads, rows of fields, end. HTML fields carry the number they are sorted by. */
struct table { FILE *f; int html; };
void table_begin(struct table *t, const char *const *heads, int n);
void table_row(struct table *t, const char *class_name); /* class_name: of the HTML row, or "" */
void table_text(struct table *t, const char *text);      /* left aligned, escaped */
void table_number(struct table *t, const char *format, double x); /* "-" when not finite */
void table_measure(struct table *t, const char *format, struct measure m); /* mean, and the standard deviation over seeds */
void table_row_end(struct table *t);
void table_end(struct table *t);
void table_escape(FILE *f, int html, const char *text);

void tables_starts(const struct ablation *a, struct table *t);  /* nats above the original: start x share */
void tables_summary(const struct ablation *a, struct table *t); /* everything measured, means over seeds */
void tables_speed(const struct ablation *a, struct table *t);
void tables_cells(const struct ablation *a, struct table *t);   /* one row for each seed, with what failed and why */

/* Texts of both reports. */
extern const char report_notes[];
void report_origin(FILE *f, const struct ablation *a, int html); /* which machine and command */
int report_failures(const struct ablation *a, char *text, size_t n); /* how many cells failed or are not done, in words */

#endif
