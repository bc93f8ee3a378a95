/* Messages and the progress line, on stderr only: stdout belongs to results. */
#include "base/log.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/host.h"

static int quiet_now;
static int line_open; /* a progress line without its newline stands on the terminal */

int log_is_quiet(void) { return quiet_now; }

void log_quiet(int quiet)
{
    quiet_now = quiet;
}

static int on_terminal(void)
{
    static int known = -1;
    if (known < 0)
        known = isatty(STDERR_FILENO);
    return known;
}

static int colours(void)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return on_terminal() && !(no && *no) && !(term && !strcmp(term, "dumb"));
}

static void clear_line(void)
{
    if (line_open)
        fputs("\r\033[K", stderr);
    line_open = 0;
}

/* One line, whatever the names from files in it hold. */
static void put_line(const char *format, va_list args)
{
    char line[4096];
    if (vsnprintf(line, sizeof line, format, args) < 0)
        return;
    text_repair(line);
    fprintf(stderr, "%s\n", line);
}

void log_info(const char *format, ...)
{
    if (quiet_now)
        return;
    clear_line();
    va_list args;
    va_start(args, format);
    put_line(format, args);
    va_end(args);
}

void log_warn(const char *format, ...)
{
    clear_line();
    fputs(colours() ? "\033[33mgqakit: warning:\033[0m " : "gqakit: warning: ", stderr);
    va_list args;
    va_start(args, format);
    put_line(format, args);
    va_end(args);
}

void progress_begin(struct progress *p, const char *title, int64_t total)
{
    p->title = title;
    p->total = total;
    p->done = 0;
    p->started = host_seconds();
    p->drawn = p->started;
    p->shown = 0;
}

static void draw(struct progress *p, const char *text, double now)
{
    char eta[16] = "";
    double spent = now - p->started;
    fputs(on_terminal() ? "\r" : "", stderr);
    if (p->total > 0) {
        double part = (double)p->done / (double)p->total;
        if (p->done > 0)
            format_duration(eta, spent / (double)p->done * (double)(p->total - p->done));
        fprintf(stderr, "%s %lld/%lld %.0f%%", p->title, (long long)p->done, (long long)p->total, floor(100.0 * part));
    } else {
        fprintf(stderr, "%s %lld", p->title, (long long)p->done);
    }
    if (text && *text)
        fprintf(stderr, " %s", text);
    if (eta[0])
        fprintf(stderr, " eta %s", eta);
    fputs(on_terminal() ? "\033[K" : "\n", stderr);
    fflush(stderr);
    line_open = on_terminal();
    p->drawn = now;
    p->shown = 1;
}

void progress_update(struct progress *p, int64_t done, const char *text)
{
    p->done = done;
    if (quiet_now)
        return;
    double now = host_seconds(), wait = on_terminal() ? 0.1 : 10.0;
    if (now - p->drawn >= wait)
        draw(p, text, now);
}

void progress_end(struct progress *p)
{
    if (p->shown)
        clear_line();
    p->shown = 0;
}

void format_bytes(char out[16], double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;
    while (u < 5 && fabs(bytes) >= 1023.95) {
        bytes /= 1024.0;
        u++;
    }
    snprintf(out, 16, u == 0 ? "%.0f %s" : "%.1f %s", bytes, units[u]);
}

void format_count(char out[16], double n)
{
    static const char *const units[] = {"", "k", "M", "G", "T", "P"};
    int u = 0;
    while (u < 5 && fabs(n) >= 999.95) {
        n /= 1000.0;
        u++;
    }
    snprintf(out, 16, u == 0 && n == floor(n) ? "%.0f%s" : "%.1f%s", n, units[u]);
}

void format_duration(char out[16], double seconds)
{
    if (!(seconds >= 0.0) || seconds > 8.6e7) {
        snprintf(out, 16, "?");
        return;
    }
    unsigned s = (unsigned)(seconds + 0.5), days = s / 86400u % 1000u, h = s / 3600u % 24u, m = s / 60u % 60u, r = s % 60u;
    if (days)
        snprintf(out, 16, "%ud %02u:%02u:%02u", days, h, m, r);
    else
        snprintf(out, 16, "%02u:%02u:%02u", h, m, r);
}
