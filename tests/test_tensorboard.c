/* TensorBoard files: CRC-32C against RFC 3720 B.4, framing, and a file read back by an independent walk of the wire format. */
#include "harness.h"

#include "uptrain/tensorboard.c"

static void test_crc32c_known_answers(void **state)
{
    (void)state;
    unsigned char zeros[32] = {0}, ones[32], up[32], down[32];
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++) {
        up[i] = (unsigned char)i;
        down[i] = (unsigned char)(31 - i);
    }
    assert_int_equal(tensorboard_crc32c(zeros, 32), 0x8a9136aa);
    assert_int_equal(tensorboard_crc32c(ones, 32), 0x62a8ab43);
    assert_int_equal(tensorboard_crc32c(up, 32), 0x46dd794e);
    assert_int_equal(tensorboard_crc32c(down, 32), 0x113fdb5c);
    assert_int_equal(tensorboard_crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(tensorboard_crc32c("", 0), 0);
}

static uint64_t get_le(const unsigned char *p, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static uint32_t unmask(uint32_t m)
{
    m -= 0xa282ead8u;
    return (m >> 17) | (m << 15);
}

static void test_framing(void **state)
{
    (void)state;
    static const char data[] = "hello, events";
    unsigned char out[64];
    size_t n = tensorboard_frame(out, data, sizeof data - 1);
    assert_int_equal(n, sizeof data - 1 + 16);
    assert_int_equal(get_le(out, 8), sizeof data - 1);
    assert_int_equal(unmask((uint32_t)get_le(out + 8, 4)), tensorboard_crc32c(out, 8));
    assert_memory_equal(out + 12, data, sizeof data - 1);
    assert_int_equal(unmask((uint32_t)get_le(out + 12 + sizeof data - 1, 4)), tensorboard_crc32c(data, sizeof data - 1));
    /* A whole record in bytes, so that a change of both writer and reader is seen: payload 0x01. */
    static const unsigned char want_head[8] = {1, 0, 0, 0, 0, 0, 0, 0};
    tensorboard_frame(out, "\001", 1);
    assert_memory_equal(out, want_head, 8);
}

struct field { unsigned number, type; uint64_t value; const unsigned char *p; size_t n; };

static uint64_t varint(const unsigned char **p, const unsigned char *end)
{
    uint64_t v = 0;
    for (int shift = 0; *p < end; shift += 7) {
        unsigned char b = *(*p)++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80))
            return v;
    }
    assert_true(0);
    return 0;
}

static int next_field(const unsigned char **p, const unsigned char *end, struct field *f)
{
    if (*p >= end)
        return 0;
    uint64_t key = varint(p, end);
    f->number = (unsigned)(key >> 3);
    f->type = (unsigned)(key & 7);
    f->n = f->type == 1 ? 8 : f->type == 5 ? 4 : 0;
    if (f->type == 0)
        f->value = varint(p, end);
    else if (f->type == 2)
        f->n = (size_t)varint(p, end);
    f->p = *p;
    assert_true(f->n <= (size_t)(end - *p));
    *p += f->n;
    return 1;
}

static void test_file_reads_back(void **state)
{
    (void)state;
    struct tensorboard t;
    char *dir = temp_path("board");
    assert_ok(tensorboard_open(&t, dir, 301));
    const struct tensorboard_scalar s[] = {{"train/loss", 2.5}, {"eval/loss", -0.125}};
    assert_ok(tensorboard_add(&t, 300, s, 2));
    char *bytes, *path = strdup(t.path);
    size_t n, at = 0;
    tensorboard_close(&t);
    assert_ok(tensorboard_add(&t, 301, s, 2)); /* closed: nothing happens */
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    assert_non_null(strstr(path, "/events.out.tfevents."));
    const unsigned char *all = (const unsigned char *)bytes;
    int records = 0;
    for (; at < n; records++) {
        size_t len = (size_t)get_le(all + at, 8);
        const unsigned char *p = all + at + 12, *end = p + len;
        assert_true(at + len + 16 <= n);
        assert_int_equal(unmask((uint32_t)get_le(end, 4)), tensorboard_crc32c(p, len));
        at += len + 16;
        struct field f;
        int64_t step = -1;
        while (next_field(&p, end, &f)) {
            if (f.number == 2)
                step = (int64_t)f.value;
            if (f.number == 3) {
                assert_int_equal(records, 0);
                assert_memory_equal(f.p, "brain.Event:2", 13);
            }
            if (f.number == 7) {
                assert_int_equal(records, 1);
                assert_int_equal(step, 301);
                assert_memory_equal(f.p, "\010\001", 2);
            }
            if (f.number == 5) {
                const unsigned char *q = f.p, *q_end = f.p + f.n;
                struct field value, part;
                for (int i = 0; next_field(&q, q_end, &value); i++) {
                    const unsigned char *u = value.p, *u_end = value.p + value.n;
                    assert_int_equal(value.number, 1);
                    assert_true(next_field(&u, u_end, &part) && part.number == 1 && part.n == strlen(s[i].tag));
                    assert_memory_equal(part.p, s[i].tag, part.n);
                    assert_true(next_field(&u, u_end, &part) && part.number == 2 && part.type == 5);
                    float x, want = (float)s[i].value;
                    memcpy(&x, part.p, 4);
                    assert_memory_equal(&x, &want, 4);
                }
                assert_int_equal(step, 300);
            }
        }
    }
    assert_int_equal(records, 3);
    free(bytes);
    free(path);
    free(dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_crc32c_known_answers), cmocka_unit_test(test_framing),
                                       cmocka_unit_test(test_file_reads_back)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
