/* See runlog.h. A line is one write() to a file opened for appending, so a kill leaves whole lines or one torn last line,
 * which the next resume cuts off. */
#include "runlog.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_LIMIT ((size_t)1 << 30)

/* Number of bytes of the log that stay: whole lines with a step <= last_step. */
static size_t kept_bytes(const char *text, size_t n, int64_t last_step)
{
    size_t at = 0;
    while (at < n) {
        const char *end = memchr(text + at, '\n', n - at);
        long long step;
        if (!end || sscanf(text + at, "{\"step\": %lld,", &step) != 1 || step > last_step)
            break;
        at = (size_t)(end - text) + 1;
    }
    return at;
}

static enum code cut(struct runlog *l, int64_t last_step)
{
    char *text;
    size_t n;
    if (!io_exists(l->path))
        return OK;
    if (last_step < 0)
        return truncate(l->path, 0) == 0 ? OK : fail_errno(l->path, "emptying");
    TRY(io_read_all(l->path, LOG_LIMIT, &text, &n));
    size_t keep = kept_bytes(text, n, last_step);
    free(text);
    if (keep < n && truncate(l->path, (off_t)keep) != 0)
        return fail_errno(l->path, "cutting");
    return OK;
}

enum code runlog_open(struct runlog *l, const char *dir, int jsonl, int tensorboard, int64_t last_step)
{
    l->fd = -1;
    l->board.fd = -1;
    l->on_terminal = isatty(STDERR_FILENO);
    l->line_open = 0;
    l->path = io_join(dir, "log.jsonl");
    if (!l->path)
        return fail(ERR_MEMORY, "%s: out of memory", dir);
    if (jsonl) {
        TRY(cut(l, last_step));
        l->fd = open(l->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (l->fd < 0)
            return fail_errno(l->path, "opening");
    }
    if (!tensorboard)
        return OK;
    char *board = io_join(dir, "tensorboard");
    enum code c = board ? tensorboard_open(&l->board, board, last_step + 1) : fail(ERR_MEMORY, "%s: out of memory", dir);
    free(board);
    return c;
}

/* JSON has no NaN. */
static void number(char out[32], const char *format, double v)
{
    if (isfinite(v))
        snprintf(out, 32, format, v);
    else
        snprintf(out, 32, "null");
}

static enum code write_line(struct runlog *l, const struct runlog_line *x)
{
    char text[512], loss[32], lr[32], norm[32], rate[32], kl[64] = "", eval[64] = "";
    number(loss, "%.9g", x->loss);
    number(lr, "%.9g", x->lr);
    number(norm, "%.9g", x->grad_norm);
    number(rate, "%.1f", x->tok_s);
    if (isfinite(x->kl))
        snprintf(kl, sizeof kl, ", \"kl\": %.9g", x->kl);
    if (isfinite(x->eval_loss))
        snprintf(eval, sizeof eval, ", \"eval_loss\": %.9g", x->eval_loss);
    int n = snprintf(text, sizeof text,
                     "{\"step\": %lld, \"tokens\": %lld, \"loss\": %s, \"lr\": %s, \"grad_norm\": %s, \"tok_s\": %s, \"skipped\": %lld, "
                     "\"time\": %.3f%s%s}\n",
                     (long long)x->step, (long long)x->tokens, loss, lr, norm, rate, (long long)x->skipped, x->time, kl, eval);
    for (ssize_t k, done = 0; done < n; done += k > 0 ? k : 0) {
        k = write(l->fd, text + done, (size_t)(n - done));
        if (k == 0)
            errno = EIO;
        if (k == 0 || (k < 0 && errno != EINTR))
            return fail_errno(l->path, "writing");
    }
    return OK;
}

enum code runlog_add(struct runlog *l, const struct runlog_line *x)
{
    struct tensorboard_scalar s[8];
    int n = 0;
    if (l->fd >= 0)
        TRY(write_line(l, x));
    if (isfinite(x->eval_loss))
        s[n++] = (struct tensorboard_scalar){"eval/loss", x->eval_loss};
    if (x->step > 0) {
        s[n++] = (struct tensorboard_scalar){"train/loss", x->loss};
        s[n++] = (struct tensorboard_scalar){"train/learning_rate", x->lr};
        s[n++] = (struct tensorboard_scalar){"train/grad_norm", x->grad_norm};
        s[n++] = (struct tensorboard_scalar){"train/skipped", (double)x->skipped};
        s[n++] = (struct tensorboard_scalar){"train/tokens", (double)x->tokens};
        if (isfinite(x->kl))
            s[n++] = (struct tensorboard_scalar){"train/kl", x->kl};
        if (isfinite(x->tok_s))
            s[n++] = (struct tensorboard_scalar){"speed/tokens_per_second", x->tok_s};
    }
    return n ? tensorboard_add(&l->board, x->step, s, n) : OK;
}

/* 1.9e-4, not 1.9e-04. */
static void short_exponent(char out[16], double v)
{
    snprintf(out, 16, "%.1e", v);
    char *e = strchr(out, 'e');
    if (e && e[2] == '0' && e[3])
        memmove(e + 2, e + 3, strlen(e + 3) + 1);
}

void runlog_progress(struct runlog *l, const struct runlog_line *x, double eta, double saved_ago, int due)
{
    char text[256], part[48], lr[16], rate[16], left[16];
    if (l->quiet || (!l->on_terminal && !due))
        return;
    short_exponent(lr, x->lr);
    format_count(rate, x->tok_s);
    int n = snprintf(text, sizeof text, "step %lld/%lld loss %.3f lr %s gnorm %.2f %s tok/s", (long long)x->step, (long long)x->steps,
                     x->loss, lr, x->grad_norm, rate);
    if (isfinite(x->kl))
        n += snprintf(text + n, sizeof text - (size_t)n, " kl %.4f", x->kl);
    if (eta >= 0) {
        format_duration(left, eta);
        snprintf(part, sizeof part, " eta %s", left);
        n += snprintf(text + n, sizeof text - (size_t)n, "%s", part);
    }
    if (x->skipped)
        n += snprintf(text + n, sizeof text - (size_t)n, " skipped %lld", (long long)x->skipped);
    if (isfinite(x->eval_loss))
        n += snprintf(text + n, sizeof text - (size_t)n, " eval %.4f", x->eval_loss);
    if (saved_ago >= 0)
        snprintf(text + n, sizeof text - (size_t)n, " saved %.0fs ago", saved_ago);
    if (l->on_terminal)
        fprintf(stderr, "\r%s\033[K", text);
    else
        fprintf(stderr, "%s\n", text);
    fflush(stderr);
    l->line_open = l->on_terminal;
}

void runlog_progress_end(struct runlog *l)
{
    if (l->line_open)
        fputc('\n', stderr);
    l->line_open = 0;
}

void runlog_close(struct runlog *l)
{
    runlog_progress_end(l);
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    tensorboard_close(&l->board);
    free(l->path);
    l->path = NULL;
}
