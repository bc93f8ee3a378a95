/* Errors. Whatever depends on a file, a flag or a device returns a code and leaves one sentence: which file, which
 * tensor or line, what was expected, what was found, what to do. Callers forward with TRY; only main prints and exits.
 * Programmer mistakes hit CHECK, which is never compiled out. The codes are the exit codes of the programs. */
#ifndef GQAKIT_BASE_ERROR_H
#define GQAKIT_BASE_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

enum code {
    OK = 0,
    ERR_INTERNAL = 1,    /* a broken promise of our own */
    ERR_USAGE = 2,       /* command line or config */
    ERR_INPUT = 3,       /* a file is not what it says it is */
    ERR_UNSUPPORTED = 4, /* architecture, target or device cannot do this */
    ERR_IO = 5,          /* the operating system refused */
    ERR_MEMORY = 6,
    ERR_NUMERIC = 7, /* non-finite values; training aborted */
    ERR_DEVICE = 8,
    ERR_LOCKED = 9,   /* another run holds the directory */
    ERR_STOPPED = 75, /* a signal stopped the run, a valid checkpoint exists */
};

#ifdef __GNUC__
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define MUST_USE __attribute__((warn_unused_result))
#define NO_RETURN __attribute__((noreturn))
#else
#define PRINTF_LIKE(f, a)
#define MUST_USE
#define NO_RETURN
#endif

/* Records the sentence for this thread (replacing any earlier one) and returns `code`. `return fail(ERR_INPUT, "%s: ...")`. */
enum code fail(enum code code, const char *format, ...) PRINTF_LIKE(2, 3);

/* Puts "context: " before the sentence already recorded; returns `code` unchanged. No effect when code == OK. */
enum code fail_in(enum code code, const char *format, ...) PRINTF_LIKE(2, 3);

/* fail(ERR_IO, "PATH: WHAT: strerror(errno)"). ENOSPC/EDQUOT, EACCES and EROFS get their advice appended. */
enum code fail_errno(const char *path, const char *what);
/* 1 when a fail_errno of this thread since fail_full_forget told of a full disk, quota or file size limit. */
int fail_full(void);
void fail_full_forget(void);

/* The sentence last recorded on this thread, "" when none. Valid until the next fail on the thread. */
const char *fail_text(void);

/* Bytes from files stand in sentences, and %.40s cuts where it likes: what is no UTF-8 becomes '?', so that a sentence can go into
 * JSON, and control characters become spaces, so that a name in a file writes no second line and commands no terminal. */
void text_repair(char *sentence);

/* For main: prints "PROGRAM: error: SENTENCE" to stderr unless code is OK, and returns the exit status. */
int fail_exit(const char *program, enum code code);

#define TRY(expr)                     \
    do {                              \
        enum code try_code_ = (expr); \
        if (try_code_ != OK)          \
            return try_code_;         \
    } while (0)

/* For functions that must release something: sets `c` and jumps to `label`. */
#define TRY_GOTO(c, expr, label) \
    do {                         \
        (c) = (expr);            \
        if ((c) != OK)           \
            goto label;          \
    } while (0)

/* Prints file:line and the condition, then aborts. */
void check_failed(const char *file, int line, const char *condition) NO_RETURN;
#define CHECK(cond)                                      \
    do {                                                 \
        if (!(cond))                                     \
            check_failed(__FILE__, __LINE__, #cond);     \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
