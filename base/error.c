/* The sentence of an error lives in one buffer per thread: a failing path allocates nothing, so it also works when memory
 * is what has run out. */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_BYTES = 2048 };
static _Thread_local char text[TEXT_BYTES];
static _Thread_local int full;

void text_repair(char *sentence)
{
    unsigned char *s = (unsigned char *)sentence;
    while (*s) {
        if (*s < 0x20 || *s == 0x7f || (*s == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0)) { /* C0, DEL, C1 */
            *s = *s == 0xc2 ? '?' : ' ';
            s++;
            continue;
        }
        int more = *s < 0x80 ? 0 : *s >= 0xc2 && *s < 0xe0 ? 1 : *s >= 0xe0 && *s < 0xf0 ? 2 : *s >= 0xf0 && *s < 0xf5 ? 3 : -1, k = 1;
        while (k <= more && (s[k] & 0xc0) == 0x80)
            k++;
        int low = *s == 0xe0 ? 0xa0 : *s == 0xf0 ? 0x90 : 0x80, high = *s == 0xed ? 0x9f : *s == 0xf4 ? 0x8f : 0xbf; /* overlong, surrogates */
        if (more >= 0 && k > more && (more == 0 || (s[1] >= low && s[1] <= high)))
            s += k;
        else
            *s++ = '?';
    }
}

/* Arguments may point into `text` (fail_text() as an argument), so the new sentence is built beside it. */
static void text_set(const char *format, va_list args, const char *tail)
{
    char fresh[TEXT_BYTES];
    int n = vsnprintf(fresh, sizeof fresh, format, args);
    if (n < 0)
        fresh[n = 0] = 0;
    if (tail && n < TEXT_BYTES - 1)
        snprintf(fresh + n, (size_t)(TEXT_BYTES - n), "%s", tail);
    text_repair(fresh);
    memcpy(text, fresh, sizeof text);
}

enum code fail(enum code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_set(format, args, NULL);
    va_end(args);
    return code;
}

enum code fail_in(enum code code, const char *format, ...)
{
    if (code == OK)
        return OK;
    char tail[TEXT_BYTES];
    snprintf(tail, sizeof tail, ": %.2000s", text);
    va_list args;
    va_start(args, format);
    text_set(format, args, tail);
    va_end(args);
    return code;
}

enum code fail_errno(const char *path, const char *what)
{
    int e = errno;
    const char *advice = "";
    full |= e == ENOSPC || e == EDQUOT || e == EFBIG;
    if (e == ENOSPC)
        advice = "; free some space on that file system or write elsewhere";
    else if (e == EDQUOT)
        advice = "; the disk quota is used up: free some space or write elsewhere";
    else if (e == EACCES || e == EPERM)
        advice = "; check the owner and permissions of the file and its directory";
    else if (e == EROFS)
        advice = "; the file system is mounted read-only: write elsewhere";
    else if (e == EFBIG)
        advice = "; raise the limit of file sizes (ulimit -f), or write to a file system that takes larger files";
    else if (e == EMFILE)
        advice = "; raise the limit of open files (ulimit -n)";
    return fail(ERR_IO, "%s: %s: %s%s", path, what, strerror(e), advice);
}

int fail_full(void) { return full; }
void fail_full_forget(void) { full = 0; }

const char *fail_text(void)
{
    return text;
}

int fail_exit(const char *program, enum code code)
{
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == OK) /* a result that nobody got is not a success */
        code = errno ? fail_errno("standard output", "cannot write the result") : fail(ERR_IO, "standard output: cannot write the result");
    if (code != OK) {
        fprintf(stderr, "%s: %s: %s\n", program, code == ERR_STOPPED ? "stopped" : "error", text[0] ? text : "unknown error");
    }
    return (int)code;
}

void check_failed(const char *file, int line, const char *condition)
{
    fflush(stdout);
    fprintf(stderr, "%s:%d: broken promise: %s\n", file, line, condition);
    abort();
}
