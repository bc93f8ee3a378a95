/* gqa-eval tasks: questions with known answers, one JSON object a line, scored as lm-evaluation-harness (Gao et al.) does. One file
 * is one task; all its lines are of one kind:
 *   choice  {"query" | "question" | "context" | "prompt": TEXT, "choices": [TEXT, ...], "gold" | "answer" | "label": index or the text}
 *   pair    {"sentence_good": TEXT, "sentence_bad": TEXT}, as in BLiMP (Warstadt et al. 2020)
 *   match   a text as above, no choices, "answer" | "target" | "gold": TEXT or a list of accepted ones
 * Other keys are left alone. */
#ifndef GQAKIT_EVAL_TASKS_H
#define GQAKIT_EVAL_TASKS_H

#include "eval.h"

/* ---- items (tasks_line.c, tasks_read.c) ----------------------------------------------------------------------------- */

enum task_kind { TASK_CHOICE, TASK_PAIR, TASK_MATCH };

enum { TASK_MOST_TEXTS = 1024 };

struct task_item {
    enum task_kind kind;
    int n, gold;         /* texts; the right one of the choices, 0 for a pair, unused for a match */
    json_t *line;        /* owns the texts */
    const char *context; /* "" for a pair */
    const char **text;   /* [n] choices; the good and the bad sentence; accepted answers */
    int64_t number;      /* line in its file, from 1 */
};
/* One line without its newline (fuzz entry). `where` is FILE:LINE for the sentence. After a failure the item is empty. */
enum code task_line_parse(struct task_item *item, const char *bytes, size_t n, const char *where) MUST_USE;
void task_item_free(struct task_item *item);
const char *task_kind_name(enum task_kind kind);

/* The log-probability of one text after its context. */
struct task_sum { double logp; int64_t tokens; };
/* What came of an item. Choices and pairs: sum [item.n], and which text is the most likely (of equal ones the first): by the sum
 * (acc), by the sum over the text's characters (lm-evaluation-harness's acc_norm), over its bytes (its acc_bytes). A match: what was
 * decoded, said [said_n], and whether an answer is equal to it. */
struct task_outcome { struct task_sum *sum; int pred, pred_norm, pred_bytes, matched; char *said; size_t said_n; };

struct task {
    char *name, *path; /* name: of the file without .jsonl */
    int group;         /* index into tasks.group, -1: the file itself was named */
    enum task_kind kind;
    struct task_item *item;
    struct task_outcome *outcome;
    int64_t n, lines; /* items kept under a limit, items in the file */
};
struct tasks { struct task *v; int n; char **group; int n_groups; };
/* `list`: files and directories (all their *.jsonl) with commas between. limit 0: all lines; the lines beyond a limit are checked
 * too. tasks_free also after a failure. */
enum code tasks_read(struct tasks *t, const char *list, int64_t limit) MUST_USE;
void tasks_free(struct tasks *t);

/* ---- text to ids (tasks_encode.c) ------------------------------------------------------------------------------------- */

struct task_encoder {
    const struct tokenizer *tokenizer;
    const char *delimiter; /* between context and choice */
    int64_t V, context;    /* context: most tokens the model reads at once */
    int lead, alone;       /* the id put before every text; before one without context; -1: none */
    int64_t cut, headless; /* counted: contexts cut from the left; texts whose first token has nothing before it and is not scored */
};
enum { TASK_BOS_AUTO, TASK_BOS_YES, TASK_BOS_NO };
#define TASK_BOS_CHOICES "auto|yes|no"
/* delimiter and context are the caller's. */
enum code task_encoder_open(struct task_encoder *e, const struct tokenizer *t, const struct arch *a, int bos) MUST_USE;

/* ids [n] for the model, of which the last `scored` count; in `sum` the log-probability is to be put. */
struct task_request { int32_t *ids; int64_t n, scored; struct task_sum *sum; };
/* One request for every text of a choice or pair, out [item->n]; whoever has them frees their ids, after a failure too. */
enum code task_encode(struct task_encoder *e, const struct task_item *item, const char *path, struct task_sum *sum, struct task_request *out) MUST_USE;
/* A match: the prompt's ids, cut from the left so that new_tokens more fit. */
enum code task_encode_prompt(struct task_encoder *e, const struct task_item *item, const char *path, int64_t new_tokens, int32_t **ids, int64_t *n) MUST_USE;

/* ---- scoring (tasks_score.c, tasks_match.c) ---------------------------------------------------------------------------- */

/* Fills every request's sum. The model is opened for `rows` rows of T, and no request has more than T + 1 ids. */
enum code task_score(struct session *s, const struct task_request *requests, int64_t n, int64_t rows, int64_t T, struct progress *p) MUST_USE;
/* The predictions of a choice or pair from its sums. */
void task_judge(const struct task_item *item, struct task_outcome *o);

/* ids [n] of one item, to be continued. */
struct task_prompt { int32_t *ids; int64_t n; const struct task_item *item; struct task_outcome *outcome; };
/* Greedy decoding until a newline, an end of text or new_tokens. The model's K/V cache is for `rows` sequences of the longest prompt +
 * new_tokens. Sorts the prompts. */
enum code task_match(struct session *s, const struct tokenizer *t, struct task_prompt *prompts, int64_t n, int64_t rows, int64_t new_tokens,
                     struct progress *p) MUST_USE;

/* ---- results (tasks_report.c) ------------------------------------------------------------------------------------------ */

/* {"schema": "gqakit/tasks/1", "results": {...}, "groups", "n-samples", "configs", "higher_is_better", ...}; the caller adds what
 * it knows of the run and json_decref's. */
json_t *tasks_result(const struct session *s, const struct tasks *t);
void tasks_table(const struct tasks *t);
/* One JSON line per item. */
enum code tasks_samples(const struct tasks *t, const char *path) MUST_USE;

#endif
