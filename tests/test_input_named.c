/* R6: malformed files by name, each with its code and a part of its sentence, input_open as the programs open them. The classes are those of
 * llama.cpp's tests/test-gguf.cpp (a header of another kind, counts and sizes that lie, names, types, shapes, offsets, too little data), put
 * on the formats we read; safetensors' own published cases are in test_safetensors.c. */
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "damage.h"
#include "data/data.h"
#include "input_files.h"
#include "token_case.h"

/* C 4, H 2, D 2, F 3, V 5, one layer, tied: the tensors of a Llama of 4 * 115 bytes. */
static const char CONFIG[] = "{\"model_type\": \"llama\", \"hidden_size\": 4, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"intermediate_size\": 3, "
                             "\"vocab_size\": 5, \"max_position_embeddings\": 8, \"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": true}";
#define L "model.layers.0."
static const struct { const char *name, *shape; int bytes; } TENSORS[] = {
    {"model.embed_tokens.weight", "[5,4]", 80}, {L "input_layernorm.weight", "[4]", 16},         {L "self_attn.q_proj.weight", "[4,4]", 64},
    {L "self_attn.k_proj.weight", "[4,4]", 64}, {L "self_attn.v_proj.weight", "[4,4]", 64},      {L "self_attn.o_proj.weight", "[4,4]", 64},
    {L "post_attention_layernorm.weight", "[4]", 16}, {L "mlp.gate_proj.weight", "[3,4]", 48},   {L "mlp.up_proj.weight", "[3,4]", 48},
    {L "mlp.down_proj.weight", "[4,3]", 48},    {"model.norm.weight", "[4]", 16},
};
enum { N_TENSORS = COUNT_OF(TENSORS), LAST = N_TENSORS - 1 };

/* What a case changes: the entry of tensor `at` (NULL: the true one), its name, text after the last entry, the data's length, the claimed length. */
struct st_case {
    const char *what;
    int at;
    const char *entry, *name, *after;
    int64_t data_more, claim_more;
    enum code code;
    const char *part;
};

static void st_put(const char *dir, const struct st_case *x)
{
    char header[4096] = "        {", path[128];
    size_t n = 9;
    int64_t at = 0;
    for (int i = 0; i < N_TENSORS; i++) {
        int mine = x->at == i;
        n += (size_t)snprintf(header + n, sizeof header - n, "%s\"%s\":", i ? "," : "", mine && x->name ? x->name : TENSORS[i].name);
        if (mine && x->entry)
            n += (size_t)snprintf(header + n, sizeof header - n, "%s", x->entry);
        else
            n += (size_t)snprintf(header + n, sizeof header - n, "{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%lld,%lld]}", TENSORS[i].shape, (long long)at,
                                  (long long)at + TENSORS[i].bytes);
        at += TENSORS[i].bytes;
    }
    n += (size_t)snprintf(header + n, sizeof header - n, "%s}", x->after ? x->after : "");
    uint64_t claim = n - 8 + (uint64_t)x->claim_more;
    memcpy(header, &claim, 8);
    char *file = calloc(1, n + (size_t)(at + x->data_more) + 1);
    memcpy(file, header, n);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    damage_put(path, file, n + (size_t)(at + x->data_more));
    free(file);
}

#define ENTRY(dtype, shape, from, to) "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"

static void test_safetensors_directory(void **state)
{
    (void)state;
    static const struct st_case cases[] = {
        {"good", -1, NULL, NULL, NULL, 0, 0, OK, ""},
        {"good: metadata", -1, NULL, NULL, ",\"__metadata__\":{\"format\":\"pt\"}", 0, 0, OK, ""},
        {"header size beyond the file", -1, NULL, NULL, NULL, 0, 4096, ERR_INPUT, "its header claims"},
        {"header size of 2^63", -1, NULL, NULL, NULL, 0, INT64_MIN, ERR_INPUT, "safetensors allows"},
        {"header size too small by one", -1, NULL, NULL, NULL, 0, -1, ERR_INPUT, "not valid JSON"},
        {"header size one into the data", -1, NULL, NULL, NULL, 0, 1, ERR_INPUT, "not valid JSON"},
        {"key without an end", -1, NULL, NULL, ",\"x", 0, 0, ERR_INPUT, "not valid JSON"},
        {"key of bad UTF-8", LAST, NULL, "model.norm.\xc3.weight", NULL, 0, 0, ERR_INPUT, "unable to decode byte"},
        {"key with a NUL", LAST, NULL, "model.norm\\u0000.weight", NULL, 0, 0, ERR_INPUT, "not valid JSON"},
        {"empty key", LAST, NULL, "", NULL, 0, 0, ERR_INPUT, "tensor \"model.norm.weight\" is missing"},
        {"duplicate key", LAST, NULL, "model.embed_tokens.weight", NULL, 0, 0, ERR_INPUT, "duplicate object key"},
        {"bad type of an entry", LAST, "[]", NULL, NULL, 0, 0, ERR_INPUT, "needs \"dtype\", \"shape\" and \"data_offsets\""},
        {"bad type of the dtype", LAST, ENTRY("7", "[4]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "needs \"dtype\""},
        {"bad type of the shape", LAST, ENTRY("\"F32\"", "\"4\"", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "\"shape\" must be a list of at most 8 sizes"},
        {"metadata of numbers", -1, NULL, NULL, ",\"__metadata__\":{\"n\":1}", 0, 0, ERR_INPUT, "\"n\" is no string"},
        {"unknown member", LAST, "{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[512,528],\"strides\":[1]}", NULL, NULL, 0, 0, ERR_INPUT, "unknown member \"strides\""},
        {"unknown dtype", LAST, ENTRY("\"F31\"", "[4]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "unknown dtype \"F31\""},
        {"dtype that we do not compute with", LAST, ENTRY("\"I32\"", "[4]", "512", "528"), NULL, NULL, 0, 0, ERR_UNSUPPORTED, "is stored as I32; supported are"},
        {"9 dimensions", LAST, ENTRY("\"F32\"", "[4,1,1,1,1,1,1,1,1]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "at most 8 sizes"},
        {"a negative size", LAST, ENTRY("\"F32\"", "[-4]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "\"shape\" must be"},
        {"a size that is no integer", LAST, ENTRY("\"F32\"", "[4.0]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "\"shape\" must be"},
        {"a product that overflows", LAST, ENTRY("\"F32\"", "[4611686018427387904,4]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "its shape overflows"},
        {"a size of 2^64", LAST, ENTRY("\"F32\"", "[18446744073709551616]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "\"shape\" must be"},
        {"bytes unlike the shape", LAST, ENTRY("\"F32\"", "[5]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "shape and dtype need 20 bytes, its offsets span 16"},
        {"another shape of as many bytes", LAST, ENTRY("\"F32\"", "[2,2]", "512", "528"), NULL, NULL, 0, 0, ERR_INPUT, "expected shape [4] from config.json, found [2, 2]"},
        {"a scalar", LAST, ENTRY("\"F32\"", "[]", "512", "516"), NULL, NULL, -12, 0, ERR_INPUT, "expected shape [4]"},
        {"offset with a hole before it", LAST, ENTRY("\"F32\"", "[4]", "516", "532"), NULL, NULL, 4, 0, ERR_INPUT, "there is a hole"},
        {"offset inside another tensor", LAST, ENTRY("\"F32\"", "[4]", "508", "524"), NULL, NULL, -4, 0, ERR_INPUT, "tensors overlap"},
        {"offset beyond the file", LAST, ENTRY("\"F32\"", "[4]", "512", "4611686018427387904"), NULL, NULL, 0, 0, ERR_INPUT, "its offsets span"},
        {"offsets backwards", LAST, ENTRY("\"F32\"", "[4]", "528", "512"), NULL, NULL, 0, 0, ERR_INPUT, "begin <= end"},
        {"one offset", LAST, "{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[512]}", NULL, NULL, 0, 0, ERR_INPUT, "[begin, end]"},
        {"no whole bytes", LAST, ENTRY("\"F4\"", "[3]", "512", "513"), NULL, NULL, -15, 0, ERR_INPUT, "no whole bytes"},
        {"not enough data", -1, NULL, NULL, NULL, -1, 0, ERR_INPUT, "it is truncated"},
        {"no data at all", -1, NULL, NULL, NULL, -528, 0, ERR_INPUT, "it is truncated"},
        {"more data than tensors", -1, NULL, NULL, NULL, 1, 0, ERR_INPUT, "there are extra bytes behind them"},
        {"a tensor of another model", LAST, NULL, "model.layers.1.mlp.up_proj.weight", NULL, 0, 0, ERR_INPUT, "tensor \"model.norm.weight\" is missing"},
        {"a tensor too many", -1, NULL, NULL, ",\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[528,528]}", 0, 0, ERR_INPUT, "tensor \"x\" belongs to no part of the model"},
    };
    char *dir = temp_path("st");
    assert_ok(io_mkdirs(dir));
    damage_text("st/config.json", CONFIG);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        st_put("st", &cases[i]);
        if (cases[i].code == OK)
            assert_ok(input_open("st"));
        else
            assert_refused(input_open("st"), cases[i].code, cases[i].part);
    }
    printf("%zu safetensors files by name\n", COUNT_OF(cases));
    free(dir);
}

static void test_config(void **state)
{
    (void)state;
    static const struct { const char *text; enum code code; const char *part; } cases[] = {
        {"", ERR_INPUT, "not valid JSON"},
        {"[]", ERR_INPUT, "expected a JSON object"},
        {"{}", ERR_INPUT, "\"model_type\": expected a string, found nothing"},
        {"{\"model_type\": 1}", ERR_INPUT, "\"model_type\": expected a string, found an integer"},
        {"{\"model_type\": \"gpt5\"}", ERR_UNSUPPORTED, "model_type \"gpt5\" is not supported; supported are"},
        {"{\"model_type\": \"llama\", \"hidden_size\": \"4\"}", ERR_INPUT, "\"hidden_size\": expected an integer, found the string \"4\""},
        {"{\"model_type\": \"llama\", \"hidden_size\": 0}", ERR_INPUT, "\"hidden_size\": expected an integer from"},
        {"{\"model_type\": \"llama\", \"hidden_size\": 4, \"num_hidden_layers\": 2147483647, \"num_attention_heads\": 2, \"intermediate_size\": 3, \"vocab_size\": 5}", ERR_INPUT, "layers"},
        {"{\"model_type\": \"llama\", \"hidden_size\": 4, \"num_hidden_layers\": 1, \"num_attention_heads\": 3, \"num_key_value_heads\": 2, \"head_dim\": 2, \"intermediate_size\": 3, "
         "\"vocab_size\": 5, \"max_position_embeddings\": 8}", ERR_INPUT, "num_attention_heads 3 is not a multiple of num_key_value_heads 2"},
    };
    char *dir = temp_path("config");
    assert_ok(io_mkdirs(dir));
    struct st_case good = {"good", -1, NULL, NULL, NULL, 0, 0, OK, ""};
    st_put("config", &good);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        damage_text("config/config.json", cases[i].text);
        assert_refused(input_open("config"), cases[i].code, cases[i].part);
    }
    printf("%zu config.json by name\n", COUNT_OF(cases));
    free(dir);
}

/* ---- token files ---------------------------------------------------------------------------------------------------- */

static enum code tokens_opened(const char *name)
{
    struct tokens *t;
    struct tokens_options o = {.format = DATA_AUTO, .V = 300, .eos = -1, .bos = -1};
    char *path = temp_path(name);
    enum code c = tokens_open(&t, path, &o);
    if (c == OK)
        tokens_close(t);
    free(path);
    return c;
}

static void test_llmc(void **state)
{
    (void)state;
    static const struct { const char *what; int64_t magic, version, count, ids; int width; uint64_t last; enum code code; const char *part; } cases[] = {
        {"good", 20240520, 1, 8, 8, 2, 299, OK, ""},
        {"good, 4 bytes", 20240801, 7, 8, 8, 4, 299, OK, ""},
        {"version 0", 20240520, 0, 8, 8, 2, 0, ERR_UNSUPPORTED, "version 0 of magic 20240520 is not known, only 1"},
        {"a version to come", 20240520, 2, 8, 8, 2, 0, ERR_UNSUPPORTED, "version 2 of magic 20240520 is not known"},
        {"version of the other magic", 20240801, 1, 8, 8, 4, 0, ERR_UNSUPPORTED, "only 7"},
        {"an evaluation file", 20240522, 1, 8, 8, 2, 0, ERR_UNSUPPORTED, "an llm.c evaluation file"},
        {"-1 tokens", 20240520, 1, -1, 8, 2, 0, ERR_INPUT, "the header says -1 tokens"},
        {"2^31 tokens", 20240520, 1, (int64_t)1 << 31, 8, 2, 0, ERR_INPUT, "the header says -2147483648 tokens"},
        {"2^31 - 1 tokens", 20240520, 1, INT32_MAX, 8, 2, 0, ERR_INPUT, "so 4294968318 bytes; the file has 1040"},
        {"one token too many", 20240520, 1, 9, 8, 2, 0, ERR_INPUT, "the header says 9 tokens of 2 bytes, so 1042 bytes; the file has 1040"},
        {"one token too few", 20240520, 1, 7, 8, 2, 0, ERR_INPUT, "so 1038 bytes"},
        {"width of the other magic", 20240801, 7, 8, 8, 2, 0, ERR_INPUT, "8 tokens of 4 bytes"},
        {"an id beyond the vocabulary", 20240520, 1, 8, 8, 2, 300, ERR_INPUT, "token 7 (byte 1038) has the id 300, but the vocabulary has 300 ids"},
        {"a negative id", 20240801, 7, 8, 8, 4, 0xffffffff, ERR_INPUT, "token 7 (byte 1052) has the id 4294967295"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        unsigned char file[1024 + 64] = {0};
        token_put_le(file, (uint64_t)cases[i].magic, 4);
        token_put_le(file + 4, (uint64_t)cases[i].version, 4);
        token_put_le(file + 8, (uint64_t)cases[i].count, 4);
        token_put_le(file + 1024 + (cases[i].ids - 1) * cases[i].width, cases[i].last, cases[i].width);
        damage_put("t.bin", file, (size_t)(1024 + cases[i].ids * cases[i].width));
        if (cases[i].code == OK)
            assert_ok(tokens_opened("t.bin"));
        else
            assert_refused(tokens_opened("t.bin"), cases[i].code, cases[i].part);
    }
    unsigned char magic[4];
    token_put_le(magic, 20240520, 4);
    damage_put("t.bin", magic, 4); /* alone */
    assert_refused(tokens_opened("t.bin"), ERR_INPUT, "the llm.c header alone has 1024");
    damage_put("t.bin", "", 0);
    assert_refused(tokens_opened("t.bin"), ERR_INPUT, "the file is empty");
    printf("%zu llm.c files by name\n", COUNT_OF(cases) + 2);
}

static void test_megatron(void **state)
{
    (void)state;
    enum { N = 34 + 2 * 12 + 3 * 8 };
    static const struct { const char *what; int at, width; uint64_t value; enum code code; const char *part; } cases[] = {
        {"good", 34, 4, 3, OK, ""},
        {"another magic", 0, 1, 'N', ERR_INPUT, "does not start with MMIDIDX"},
        {"version 0", 9, 8, 0, ERR_UNSUPPORTED, "index version 0 is not known, only 1"},
        {"a version to come", 9, 8, 2, ERR_UNSUPPORTED, "index version 2"},
        {"dtype 0", 17, 1, 0, ERR_INPUT, "dtype code 0 is no integer type"},
        {"dtype float", 17, 1, 6, ERR_INPUT, "dtype code 6"},
        {"dtype 255", 17, 1, 255, ERR_INPUT, "dtype code 255"},
        {"2^61 sequences", 18, 8, (uint64_t)1 << 61, ERR_INPUT, "do not fit into"},
        {"2^64 - 1 sequences", 18, 8, UINT64_MAX, ERR_INPUT, "do not fit into"},
        {"a sequence too many", 18, 8, 3, ERR_INPUT, ""},
        {"2^61 documents", 26, 8, (uint64_t)1 << 61, ERR_INPUT, "do not fit into"},
        {"a document too few", 26, 8, 2, ERR_INPUT, "8 bytes are left after the last array"},
        {"a negative length", 34, 4, 0xffffffff, ERR_INPUT, "sequence 0 has the length -1"},
        {"a length beyond the .bin", 38, 4, 6, ERR_INPUT, "sequence 1 is 6 ids of 2 bytes at byte 6, beyond the 16 bytes of the .bin"},
        {"the greatest length", 38, 4, INT32_MAX, ERR_INPUT, "beyond the 16 bytes"},
        {"a pointer beyond the .bin", 50, 8, 17, ERR_INPUT, "at byte 17, beyond"},
        {"a negative pointer", 50, 8, (uint64_t)-2, ERR_INPUT, "at byte -2, beyond"},
        {"the greatest pointer", 50, 8, INT64_MAX, ERR_INPUT, "beyond"},
        {"a document beyond the sequences", 74, 8, 3, ERR_INPUT, "document 2 starts at sequence 3"},
        {"documents backwards", 66, 8, 2, OK, ""}, /* 0, 2, 2: an empty document */
        {"documents backwards", 58, 8, 2, ERR_INPUT, "document 1 starts at sequence 1; expected one in [2, 2]"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        unsigned char idx[N] = "MMIDIDX", bin[16] = {0};
        token_put_le(idx + 9, 1, 8), idx[17] = 8, token_put_le(idx + 18, 2, 8), token_put_le(idx + 26, 3, 8);
        token_put_le(idx + 34, 3, 4), token_put_le(idx + 38, 5, 4), token_put_le(idx + 42, 0, 8), token_put_le(idx + 50, 6, 8);
        token_put_le(idx + 66, 1, 8), token_put_le(idx + 74, 2, 8);
        token_put_le(idx + cases[i].at, cases[i].value, cases[i].width);
        damage_put("m.idx", idx, sizeof idx);
        damage_put("m.bin", bin, sizeof bin);
        if (cases[i].code == OK)
            assert_ok(tokens_opened("m.idx"));
        else
            assert_refused(tokens_opened("m.idx"), cases[i].code, cases[i].part);
    }
    printf("%zu Megatron indices by name\n", COUNT_OF(cases));
}

/* ---- files of another kind in their place ---------------------------------------------------------------------------- */

static void test_other_kinds(void **state)
{
    (void)state;
    static const struct { const char *name, *bytes; size_t n; enum code code; const char *part; } cases[] = {
        {"a.h5", "", 0, ERR_INPUT, "neither an HDF5 file nor a native checkpoint"},
        {"a.h5", "\x89HDF\r\n\x1a\n", 8, ERR_INPUT, "not a readable HDF5 file"},
        {"a.h5", "gqakit/checkpoint/1 bytes 0 xxh128 0\n", 37, ERR_INPUT, ""},
        {"a.h5", "PK\3\4aaaaaaaa", 12, ERR_INPUT, "neither an HDF5 file"},
        {"a.bin", "", 0, ERR_INPUT, "0 bytes are too few for a llama2.c model"},
        {"a.bin", "24ka\2\0\0\0", 8, ERR_INPUT, "too few for a llama2.c model"},
        {"a.bin", "PK\3\4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 36, ERR_INPUT, "not a llama2.c model"},
        {"a.gguf", "GGUF\3\0\0\0", 8, ERR_UNSUPPORTED, "GGUF files are written, not read"},
        {"a", "GGUF", 4, ERR_UNSUPPORTED, "GGUF files are written, not read"},
        {"a.safetensors", "\2\0\0\0\0\0\0\0{}", 10, ERR_INPUT, "not a model file"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        damage_put(cases[i].name, cases[i].bytes, cases[i].n);
        assert_refused(input_open(cases[i].name), cases[i].code, cases[i].part);
        char *path = temp_path(cases[i].name);
        unlink(path);
        free(path);
    }
    printf("%zu files of another kind\n", COUNT_OF(cases));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_directory), cmocka_unit_test(test_config), cmocka_unit_test(test_llmc), cmocka_unit_test(test_megatron), cmocka_unit_test(test_other_kinds),
    };
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
