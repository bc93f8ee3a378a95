/* Which tokenizer a checkpoint was made with. tokenizer.json may live inside an .h5, so it is taken from the companions;
 * vocab.json + merges.txt only from a directory. */
#include <string.h>

#include "parts.h"

enum code model_tokenizer(struct tokenizer **t, struct checkpoint *ck)
{
    const struct ckpt_companion *list;
    int n = ckpt_companions(ck, &list), has_vocab = 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(list[i].name, "tokenizer.json") == 0)
            return fail_in(tokenizer_parse(t, list[i].bytes, list[i].n, list[i].name), "%s", ckpt_path(ck));
        has_vocab |= strcmp(list[i].name, "vocab.json") == 0;
    }
    if (has_vocab && io_is_dir(ckpt_path(ck)))
        return tokenizer_open(t, ckpt_path(ck));
    if (ckpt_arch(ck)->V == 256)
        return tokenizer_open(t, "bytes");
    return fail(ERR_USAGE, "%s has no tokenizer.json; name a tokenizer (a path, or bytes for a byte-level model)", ckpt_path(ck));
}
