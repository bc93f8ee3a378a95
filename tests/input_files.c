/* See input_files.h. */
#include <zlib.h>

#include "checkpoints/checkpoint.h"
#include "input_files.h"
#include "token_case.h"

void input_gz(const char *name, const char *text)
{
    char *path = temp_path(name);
    gzFile f = gzopen(path, "wb");
    assert_int_equal(gzwrite(f, text, (unsigned)strlen(text)), (int)strlen(text));
    gzclose(f);
    free(path);
}

void input_tokens(void)
{
    static const char lines[] = "{\"text\": \"one\"}\n{\"text\": \"two \\u00e9\", \"x\": [1, {}]}\n";
    unsigned char bin[1024 + 16] = {0}, idx[34 + 2 * 12 + 3 * 8] = "MMIDIDX";
    token_put_le(bin, 20240520, 4), token_put_le(bin + 4, 1, 4), token_put_le(bin + 8, 8, 4);
    for (int i = 0; i < 8; i++)
        token_put_le(bin + 1024 + 2 * i, (uint64_t)(i * 40), 2);
    damage_put("t.bin", bin, sizeof bin);
    damage_text("t.bin.json", "{\"dtype\": \"uint16\", \"vocab\": 300, \"tokenizer_sha256\": \"\", \"bytes\": 12, \"eos\": 2, \"input_sha256\": null, \"tokens\": 8}");
    damage_text("t.bin.mask", "\1\1\1\1\1\1\1\1");
    token_put_le(idx + 9, 1, 8), idx[17] = 8, token_put_le(idx + 18, 2, 8), token_put_le(idx + 26, 3, 8);
    token_put_le(idx + 34, 3, 4), token_put_le(idx + 38, 5, 4), token_put_le(idx + 42, 0, 8), token_put_le(idx + 50, 6, 8);
    token_put_le(idx + 66, 1, 8), token_put_le(idx + 74, 2, 8);
    damage_put("m.idx", idx, sizeof idx);
    damage_put("m.bin", bin + 1024, 16);
    damage_put("r.npy", bin + 1024, 16);
    damage_text("l.jsonl", lines);
    input_gz("z.jsonl.gz", lines);
}

void input_corpus(const char *from, const char *to)
{
    char *bytes;
    size_t n;
    assert_ok(io_read_all(from, 1 << 20, &bytes, &n));
    const char *nul = n ? memchr(bytes, 0, n) : NULL;
    damage_put(to, bytes, nul && !strstr(from, "sentencepiece") ? (size_t)(nul - bytes) : n);
    free(bytes);
}

enum code input_open(const char *name)
{
    struct checkpoint *ck;
    char *path = temp_path(name);
    enum code c = ckpt_open(&ck, path, NULL);
    if (c == OK)
        ckpt_close(ck);
    free(path);
    return c;
}
