/* What the tests of token files share: files in the temporary directory, opened and compared. */
#ifndef GQAKIT_TESTS_TOKEN_CASE_H
#define GQAKIT_TESTS_TOKEN_CASE_H

#include "data/data.h"

extern const struct tokens_options token_plain; /* no bos, no eos */

void token_put_le(unsigned char *p, uint64_t v, int width);
/* Opens a file of the temporary directory; asserts that a refusal leaves *t NULL. */
enum code token_try_open(const char *name, const struct tokens_options *o, struct tokens **t);
enum code token_opens(const char *name, const struct tokens_options *o); /* and closes it again */
/* The stream is exactly want[0..n), read in every range (n <= 64), standing for `bytes` of text. */
void token_check_stream(const char *name, const struct tokens_options *o, const int32_t *want, int64_t n, int64_t bytes);
void token_cut_file(const char *name, size_t n);

#endif
