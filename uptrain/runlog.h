/* The log of a run: log.jsonl, TensorBoard, and the progress line on stderr. */
#ifndef GQAKIT_UPTRAIN_RUNLOG_H
#define GQAKIT_UPTRAIN_RUNLOG_H

#include "base/base.h"
#include "tensorboard.h"

struct runlog {
    int fd; /* of log.jsonl; -1 when not wanted */
    char *path;
    struct tensorboard board;
    int quiet, on_terminal, line_open;
};

struct runlog_line {
    int64_t step, steps, tokens, skipped;
    double loss, lr, grad_norm, tok_s, time; /* NaN: null in the file */
    double kl, eval_loss;                    /* NaN: absent */
};

/* Opens for appending in dir. last_step >= 0: a resumed run; lines of later steps (and a torn last line) are cut off first.
 * last_step < 0: a fresh run; an older log.jsonl is emptied. */
enum code runlog_open(struct runlog *l, const char *dir, int jsonl, int tensorboard, int64_t last_step) MUST_USE;
enum code runlog_add(struct runlog *l, const struct runlog_line *line) MUST_USE;
/* step 120/2000 loss 2.813 lr 1.9e-4 gnorm 0.41 12.4k tok/s eta 00:41:10 saved 12s ago. On a terminal redrawn in place;
 * elsewhere printed only when `due`. eta and saved_ago in seconds, negative: left out. */
void runlog_progress(struct runlog *l, const struct runlog_line *line, double eta, double saved_ago, int due);
void runlog_progress_end(struct runlog *l); /* before anything else is printed */
void runlog_close(struct runlog *l);

#endif
