/* YAML configs by libyaml, bound to structs by tables. The event parser keeps line and column, so every refusal says
 * file:line:col, the key, and the nearest legal key. Limits: 1 MiB, depth 32, no anchors, aliases, merge keys or tags;
 * duplicate keys are refused. Numbers: 2e-5 (a string in YAML 1.1) and 1_000 are accepted where a number is expected. */
#ifndef GQAKIT_BASE_CONFIG_H
#define GQAKIT_BASE_CONFIG_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum config_type {
    CONFIG_INT,    /* int64_t */
    CONFIG_FLOAT,  /* double */
    CONFIG_BOOL,   /* int */
    CONFIG_STR,    /* const char *, owned by the config */
    CONFIG_CHOICE, /* int: index into `choices`, "a|b|c" */
    CONFIG_INTS,   /* struct config_list of int64_t; a single scalar is a list of one */
    CONFIG_FLOATS, /* struct config_list of double */
    CONFIG_STRS,   /* struct config_list of const char * */
    CONFIG_MAP,    /* const struct config_node *: a subtree bound later with its own table; NULL when absent */
};

struct config_list { int n; const void *items; }; /* items: int64_t[n], double[n] or const char *[n] */

struct config_field {
    const char *key; /* dotted path below the node bound: "optimizer.lr" */
    enum config_type type;
    size_t offset;       /* into the struct bound */
    const char *def;     /* text of the default as YAML; NULL: field left as it was (caller presets "unset") */
    const char *choices; /* CONFIG_CHOICE only */
    const char *alias;   /* other spellings users guess, "a|b"; accepted, warned once; or NULL */
    const char *help;    /* one line for --help */
    double lo, hi;       /* inclusive range for numbers; both 0: any */
};

struct config;      /* the parsed file; owns all strings */
struct config_node; /* a mapping, sequence or scalar with its mark */

/* Overrides are "key.sub=value" strings, value parsed as YAML; they win over the file. */
enum code config_load(struct config **c, const char *path, int n_overrides, char **overrides) MUST_USE;
enum code config_parse(struct config **c, const char *bytes, size_t n, const char *where) MUST_USE; /* fuzz entry */
void config_free(struct config *c);
const struct config_node *config_root(const struct config *c);

/* Fills dst. Every key below `node` must be in the table (a CONFIG_MAP covers its subtree): unknown -> ERR_USAGE. */
enum code config_bind(const struct config *c, const struct config_node *node, const struct config_field *fields, int n,
                      void *dst) MUST_USE;
int config_has(const struct config_node *node, const char *key); /* dotted path present in the file or overrides */
/* Subtree at a dotted path, NULL when absent. */
const struct config_node *config_at(const struct config_node *node, const char *key);
/* "file:line:col" of a node or of a dotted key below it, for the caller's own sentences. Static thread-local buffer. */
const char *config_where(const struct config *c, const struct config_node *node, const char *key);
/* The subtree as JSON (numbers and bools typed), for resolved-config dumps and hashes; and any JSON as YAML text. */
json_t *config_to_json(const struct config_node *node);
char *config_json_to_yaml(const json_t *root); /* malloc'ed */
/* Prints the table as help: key, default, meaning. */
void config_help(const struct config_field *fields, int n);
/* Nearest of the candidates by edit distance, NULL when none is near. */
const char *config_nearest(const char *word, const char *const *candidates, int n);

#ifdef __cplusplus
}
#endif
#endif
