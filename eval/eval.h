/* gqa-eval's own parts. Every command is one function in one file; main.c only chooses. */
#ifndef GQAKIT_EVAL_EVAL_H
#define GQAKIT_EVAL_EVAL_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"
#include "data/data.h"
#include "kernels/kernels.h"
#include "model/model.h"

/* Commands: argv[0] is "gqa-eval COMMAND"'s command word. */
typedef enum code command_fn(int argc, char **argv);
command_fn command_perplexity, command_score, command_decode, command_generate, command_ablate, command_tasks;

/* A checkpoint in a model on a device: what every command opens first. Close with session_close, also after a failure. */
struct session {
    struct checkpoint *checkpoint;
    const struct backend *backend;
    struct device *device;
    struct model *model;
    struct checkpoint *reference_checkpoint; /* what score_windows compares with, session_reference; NULL */
    struct model *reference;
};
struct session_options {
    const char *path;
    const char *device;  /* "auto", "cpu", "cuda" */
    int threads;         /* 0: all */
    enum dtype dtype;    /* of the weights in memory: session_dtype */
};
/* Checkpoint and device; the model follows with session_model, when its sizes are known. */
enum code session_open(struct session *s, const struct session_options *o) MUST_USE;
enum code session_model(struct session *s, const struct session_options *o, struct model_options shape) MUST_USE;
/* Opens a second checkpoint on the same device, of the same tokens; both models then exist side by side. Before session_model, which needs
 * shape.taught = -1 then. o->dtype DT_NONE: as it is stored. */
enum code session_reference(struct session *s, const struct session_options *o, struct model_options shape) MUST_USE;
void session_close(struct session *s);
/* Index into SESSION_DTYPES -> type; keep = bf16 if the checkpoint's weights are, else f32. */
#define SESSION_DTYPES "keep|f32|bf16"
enum dtype session_dtype(int choice, const struct arch *a);

/* The tokenizer asked for: PATH, "bytes", or NULL / "model" for the checkpoint's own (model_tokenizer). */
enum code eval_tokenizer(struct checkpoint *ck, const char *asked, struct tokenizer **t) MUST_USE;
/* Ids of a text that the model has no row for: ERR_INPUT. */
enum code eval_ids_check(const int32_t *ids, int64_t n, const struct arch *a) MUST_USE;

/* The ids that end a text (stops.c). */
#define STOPS_MAX 32
struct stops { int32_t id[STOPS_MAX]; int n; };
void stops_of(struct stops *s, struct checkpoint *ck);
int stops_has(const struct stops *s, int32_t id);

/* Sliding-window scoring of a token stream, as people compare perplexities: windows of `context` predictions, each starting `stride`
 * after the last; only predictions not yet scored count. stride = context: disjoint windows. */
struct window_options {
    int64_t context, stride, limit /* tokens, 0: all */;
    int pack, eos;
    json_t *windows; /* NULL, or an array that gets [sum of -ln p, tokens] of every window */
    struct text_bytes *bytes; /* NULL, or what counts the bytes of the tokens scored */
};
struct window_result {
    double nats, stderr_nats; /* sum of -ln p over tokens; standard error of their mean */
    int64_t tokens, bytes;    /* scored; bytes of text that they stand for, 0 without window_options.bytes */
    double kl, kl_stderr;     /* sum of KL(reference || model), where score_windows has a reference */
};
/* Rows scored at once: the model must be opened with B at least this and T = context. */
int64_t window_rows(int64_t context);
/* ERR_NUMERIC when a loss is not finite, ERR_INPUT when there is nothing to predict. */
enum code score_windows(struct session *s, struct tokens *const *files, int n_files, const struct window_options *o, struct window_result *r) MUST_USE;

#endif
