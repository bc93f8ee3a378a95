/* GPT-2's byte level (Radford et al. 2019): every byte is written as one printable character, so that a vocabulary of text can
 * hold any bytes. Bytes that are printable in Latin-1 stand for themselves, the other 68 become U+0100, U+0101, ... in order. */
#include "tokenizer.h"

static int is_printable(int byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

int byte_char(unsigned char byte)
{
    if (is_printable(byte))
        return byte;
    /* 0..32 are the first 33 of the moved bytes, 127..160 the next 34, 173 the last. */
    return 256 + (byte <= 32 ? byte : byte <= 160 ? 33 + byte - 127 : 67);
}

int byte_of_char(uint32_t c)
{
    if (c < 256)
        return is_printable((int)c) ? (int)c : -1;
    int k = c < 256 + 68 ? (int)c - 256 : -1;
    return k < 33 ? k : k < 67 ? 127 + k - 33 : 173;
}

enum code byte_chars_add(struct buffer *out, const char *text, size_t n)
{
    TRY(buffer_need(out, 2 * n));
    for (size_t i = 0; i < n; i++) {
        uint32_t c = (uint32_t)byte_char((unsigned char)text[i]);
        if (c < 0x80) {
            out->p[out->n++] = (char)c;
        } else { /* all are below U+0800 */
            out->p[out->n++] = (char)(0xC0 | c >> 6);
            out->p[out->n++] = (char)(0x80 | (c & 0x3F));
        }
    }
    return OK;
}
