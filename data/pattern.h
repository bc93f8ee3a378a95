/* From Oniguruma's spelling of a regular expression to PCRE2's. */
#ifndef GQAKIT_DATA_PATTERN_H
#define GQAKIT_DATA_PATTERN_H

#include "tokenizer.h"

/* s must be valid UTF-8; appends to out. ERR_UNSUPPORTED names what cannot be said in PCRE2. */
enum code pattern_translate(const char *s, size_t n, const char *where, struct buffer *out) MUST_USE;

#endif
