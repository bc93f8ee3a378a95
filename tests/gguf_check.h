/* A small verifier of GGUF files, written against the format's description and not against our writer: it reads the whole file and
 * asserts everything the format and llama.cpp's loader demand. */
#ifndef GQAKIT_TESTS_GGUF_CHECK_H
#define GQAKIT_TESTS_GGUF_CHECK_H

#include <stddef.h>
#include <stdint.h>

struct gguf_value { const char *key; size_t key_n; uint32_t type; const unsigned char *p; };
struct gguf_entry { char name[64]; uint32_t nd, type; uint64_t ne[4]; const unsigned char *p; };
struct gguf_file {
    unsigned char *bytes;
    size_t n;
    struct gguf_value *values;
    struct gguf_entry *tensors;
    uint64_t n_values, n_tensors;
};

void gguf_check_open(struct gguf_file *f, const char *path);
void gguf_check_close(struct gguf_file *f);
const struct gguf_value *gguf_check_value(const struct gguf_file *f, const char *key); /* NULL if absent */
/* The value must be there and of this type. */
uint32_t gguf_check_u32(const struct gguf_file *f, const char *key);
double gguf_check_f32(const struct gguf_file *f, const char *key);
int gguf_check_bool(const struct gguf_file *f, const char *key);
int gguf_check_is(const struct gguf_file *f, const char *key, const char *text);
/* Entry i of an array; its length. Strings: *n bytes. */
uint64_t gguf_check_length(const struct gguf_file *f, const char *key);
const char *gguf_check_text(const struct gguf_file *f, const char *key, uint64_t i, size_t *n);
int32_t gguf_check_i32(const struct gguf_file *f, const char *key, uint64_t i); /* also of u32 */
double gguf_check_real(const struct gguf_file *f, const char *key, uint64_t i);
const struct gguf_entry *gguf_check_tensor(const struct gguf_file *f, const char *name); /* NULL if absent */
float gguf_check_element(const struct gguf_entry *t, uint64_t i);
/* Warnings of what is called between 1 and 0 are not shown: that a model has no tokenizer, 200 times over. */
void gguf_check_hush(int on);

#endif
