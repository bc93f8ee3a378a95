/* The parsed tree of a config and what config_parse.c, config_bind.c and config.c share; private to base. */
#ifndef GQAKIT_BASE_CONFIG_PRIVATE_H
#define GQAKIT_BASE_CONFIG_PRIVATE_H

#include <stddef.h>
#include <stdint.h>
#include "base/config.h"

enum config_kind { CONFIG_IS_SCALAR, CONFIG_IS_SEQUENCE, CONFIG_IS_MAPPING };

struct config_pair {
    const char *key;
    const char *where; /* of the key: file name or "command line" */
    int line, column;  /* from 1; 0 on the command line */
    struct config_node *value;
    int warned; /* that it is spelled by an alias */
};

struct config_node {
    enum config_kind kind;
    int plain; /* scalars: 1 if written without quotes */
    const char *text;
    const char *where;
    int line, column;
    int n, capacity;
    struct config_pair *pairs;  /* mappings */
    struct config_node **items; /* sequences */
};

/* Everything a config owns is in one list of blocks and goes when the config goes. */
struct config_pool;

struct config {
    const char *where;
    struct config_node *root;
    struct config_pool *pool;
};

void *config_alloc(const struct config *c, size_t bytes); /* zeroed; NULL with the sentence left when out of memory */
/* Parses one document of any kind; *out is NULL for an empty one. line_marks 0: a piece of the command line. */
enum code config_parse_text(const struct config *c, const char *bytes, size_t n, const char *where, int line_marks,
                            struct config_node **out) MUST_USE;
const struct config_pair *config_pair_at(const struct config_node *node, const char *key); /* dotted path */
int config_is_null(const struct config_node *node);
/* What a plain scalar says; 0 when it is no such thing. */
int config_scalar_int(const struct config_node *node, int64_t *out);
int config_scalar_float(const struct config_node *node, double *out);
int config_scalar_bool(const struct config_node *node, int *out);
/* "file:line:col", in one of a few thread-local buffers used in turn. */
const char *config_mark(const char *where, int line, int column);

#endif
