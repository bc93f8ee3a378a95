/* Private to the calibration: where its tokens come from. */
#ifndef GQAKIT_CONVERT_CALIBRATE_TOKENS_H
#define GQAKIT_CONVERT_CALIBRATE_TOKENS_H

#include "calibrate_parts.h"

enum { CALIBRATION_TOKENS = 32768 };
/* read 0: the sizes alone. */
enum code calibration_tokens_open(struct calibration_tokens *t, struct checkpoint *source, const struct options *o, int read) MUST_USE;
void calibration_tokens_close(struct calibration_tokens *t);

#endif
