/* Model cards (README.md): what a result takes over from its source. */
#ifndef GQAKIT_CHECKPOINTS_CARD_H
#define GQAKIT_CHECKPOINTS_CARD_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct checkpoint;

/* The license, license_name, license_link and language members of a README.md's front matter, whole lines, each ended by LF; ""
 * when there are none. malloc'ed; NULL when out of memory. */
char *card_front_lines(const char *text, size_t n);
/* The same of the README.md in the source's directory, or inside its .h5. A card that cannot be read is a warning. */
char *card_inherited(struct checkpoint *source);

#ifdef __cplusplus
}
#endif
#endif
