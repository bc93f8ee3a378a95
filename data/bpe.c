/* Byte-pair encoding of one word (Sennrich, Haddow, Birch 2016; the priority-queue form used by SentencePiece and Hugging Face).
 *
 * The word is a linked list of symbols, at first one per character. A heap holds the neighbours that may merge, lowest rank
 * first, then leftmost. A popped entry counts only if its pair still merges into the same id; a merge pushes the two new pairs.
 * O(n log n) for any word. Characters outside the vocabulary become <0xNN> byte tokens (byte fallback), or unk, or nothing.
 *
 * Words repeat, so results are kept in a cache of fixed size. A vocabulary without pre-tokenizer (Llama 2) makes one word
 * of a whole document; when no merge ever reaches from another character into U+2581 the document is cut before each U+2581
 * that follows something else, which changes no id, and the pieces repeat too. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

#define META "\xE2\x96\x81"
enum { CACHE_SLOTS = 1 << 15, CACHE_WORD = 40, CACHE_IDS = 20 }; /* about 4 MiB; longer words are rare */

struct cached_word { int32_t ids[CACHE_IDS]; uint8_t n_ids, n; char word[CACHE_WORD]; };
struct word_cache { struct cached_word v[CACHE_SLOTS]; };

/* ---- merges table ---- */

/* Multiplicative hashing (Dietzfelbinger et al. 1997): the top bits of the product with a random odd number. */
static uint32_t pair_slot(const struct bpe *m, uint64_t pair)
{
    return (uint32_t)(pair * m->merge_key >> 32 >> (32 - __builtin_ctz(m->n_merge_slots)));
}

static const struct merge *merge_find(const struct bpe *m, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint32_t i = pair_slot(m, pair);; i = (i + 1) & (m->n_merge_slots - 1)) {
        if (m->merges[i].rank < 0)
            return NULL;
        if (m->merges[i].pair == pair)
            return &m->merges[i];
    }
}

enum code bpe_merges_reserve(struct bpe *m, int64_t n)
{
    if (n > INT32_MAX / 4)
        return fail(ERR_INPUT, "%lld merges are more than any tokenizer has", (long long)n);
    m->n_merge_slots = 16;
    m->merge_key = hash_key() | 1;
    while (m->n_merge_slots < n * 2)
        m->n_merge_slots *= 2;
    m->merges = malloc(m->n_merge_slots * sizeof *m->merges);
    if (m->merges == NULL)
        return fail(ERR_MEMORY, "no memory for %lld merges", (long long)n);
    for (uint32_t i = 0; i < m->n_merge_slots; i++)
        m->merges[i] = (struct merge){0, -1, -1};
    return OK;
}

/* Does the string of `id` hold U+2581 after another character? */
static int has_inner_meta(const struct bpe *m, int32_t id)
{
    size_t n;
    const char *s = vocab_text(&m->vocab, id, &n);
    for (size_t i = 3; s != NULL && i + 3 <= n; i++)
        if (memcmp(s + i, META, 3) == 0 && memcmp(s + i - 3, META, 3) != 0)
            return 1;
    for (size_t i = 1; s != NULL && i < 3 && i + 3 <= n; i++)
        if (memcmp(s + i, META, 3) == 0)
            return 1;
    return 0;
}

void bpe_merge_set(struct bpe *m, int32_t left, int32_t right, int32_t rank, int32_t id)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t i = pair_slot(m, pair);
    while (m->merges[i].rank >= 0 && m->merges[i].pair != pair)
        i = (i + 1) & (m->n_merge_slots - 1);
    m->merges[i] = (struct merge){pair, rank, id};
    m->n_merges++;
}

void bpe_finish(struct bpe *m)
{
    for (int b = 0; b < 256; b++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[7] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>', 0};
        m->byte_ids[b] = vocab_find(&m->vocab, name, 6);
    }
    for (int c = 0; c < 128; c++)
        m->ascii_ids[c] = vocab_find(&m->vocab, &(char){(char)c}, 1);
    m->split_at_meta = vocab_find(&m->vocab, META, 3) >= 0;
    for (uint32_t i = 0; i < m->n_merge_slots && m->split_at_meta; i++)
        if (m->merges[i].rank >= 0 && has_inner_meta(m, m->merges[i].id))
            m->split_at_meta = 0;
}

void bpe_free(struct bpe *m)
{
    vocab_free(&m->vocab);
    free(m->merges);
    *m = (struct bpe){0};
}

/* ---- one word ---- */

static int candidate_before(struct candidate a, struct candidate b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

static void heap_push(struct bpe_scratch *s, struct candidate c)
{
    int64_t i = s->heap_n++;
    for (int64_t up; i > 0 && candidate_before(c, s->heap[up = (i - 1) / 2]); i = up)
        s->heap[i] = s->heap[up];
    s->heap[i] = c;
}

static struct candidate heap_pop(struct bpe_scratch *s)
{
    struct candidate top = s->heap[0], last = s->heap[--s->heap_n];
    int64_t i = 0;
    for (int64_t k; (k = 2 * i + 1) < s->heap_n; i = k) {
        if (k + 1 < s->heap_n && candidate_before(s->heap[k + 1], s->heap[k]))
            k++;
        if (!candidate_before(s->heap[k], last))
            break;
        s->heap[i] = s->heap[k];
    }
    s->heap[i] = last;
    return top;
}

static void offer_pair(const struct bpe *m, struct bpe_scratch *s, int32_t at)
{
    int32_t next = s->symbols[at].next;
    if (next < 0)
        return;
    const struct merge *found = merge_find(m, s->symbols[at].id, s->symbols[next].id);
    if (found != NULL)
        heap_push(s, (struct candidate){found->rank, at, found->id});
}

static void merge_symbols(const struct bpe *m, struct bpe_scratch *s)
{
    while (s->heap_n > 0) {
        struct candidate c = heap_pop(s);
        struct symbol *left = &s->symbols[c.at];
        if (left->id < 0 || left->next < 0)
            continue;
        struct symbol *right = &s->symbols[left->next];
        const struct merge *found = merge_find(m, left->id, right->id);
        if (found == NULL || found->id != c.id)
            continue; /* stale: a neighbour has changed since */
        left->id = c.id;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0)
            s->symbols[left->next].prev = c.at;
        if (left->prev >= 0)
            offer_pair(m, s, left->prev);
        offer_pair(m, s, c.at);
    }
}

/* At most one symbol per byte, and three candidates per symbol over the whole run: n - 1 at first, two per merge. */
static enum code scratch_need(struct bpe_scratch *s, size_t n)
{
    if (n > INT32_MAX / 4)
        return fail(ERR_INPUT, "a stretch of %zu bytes without a word boundary is too long to tokenise", n);
    if ((int64_t)n > s->symbols_capacity) {
        int64_t capacity = (int64_t)n < 1024 ? 1024 : (int64_t)n + (int64_t)n / 2;
        free(s->symbols);
        free(s->heap);
        s->symbols_capacity = 0;
        s->symbols = malloc((size_t)capacity * sizeof *s->symbols);
        s->heap = malloc((size_t)capacity * 3 * sizeof *s->heap);
        if (s->symbols == NULL || s->heap == NULL)
            return fail(ERR_MEMORY, "no memory for a word of %zu bytes", n);
        s->symbols_capacity = capacity;
    }
    return OK;
}

/* Characters to symbols; returns their number. A pending unk is put down only before the next known character, as the
 * reference implementation does (byte tokens may overtake it when some <0xNN> are missing). */
static int32_t word_symbols(const struct bpe *m, struct bpe_scratch *s, const char *word, size_t n)
{
    int32_t count = 0;
    int pending = 0;
#define PUT(value) (s->symbols[count].id = (value), count++)
    for (size_t i = 0, length; i < n; i += length) {
        unsigned char lead = (unsigned char)word[i];
        length = utf8_length(lead);
        int32_t id = lead < 128 ? m->ascii_ids[lead] : vocab_find(&m->vocab, word + i, length);
        if (id >= 0) {
            if (pending)
                PUT(m->unk);
            pending = 0;
            PUT(id);
            continue;
        }
        int have = m->byte_fallback;
        for (size_t k = 0; k < length; k++)
            have = have && m->byte_ids[(unsigned char)word[i + k]] >= 0;
        if (have) {
            for (size_t k = 0; k < length; k++)
                PUT(m->byte_ids[(unsigned char)word[i + k]]);
            continue;
        }
        if (m->unk >= 0) {
            if (pending && !m->fuse_unk)
                PUT(m->unk);
            pending = 1;
        }
    }
    if (pending)
        PUT(m->unk);
#undef PUT
    return count;
}

static enum code encode_whole(const struct bpe *m, struct bpe_scratch *s, const char *word, size_t n, struct id_list *out)
{
    TRY(scratch_need(s, n));
    int32_t count = word_symbols(m, s, word, n);
    for (int32_t i = 0; i < count; i++) {
        s->symbols[i].prev = i - 1;
        s->symbols[i].next = i + 1 < count ? i + 1 : -1;
    }
    s->heap_n = 0;
    for (int32_t i = 0; i + 1 < count; i++)
        offer_pair(m, s, i);
    merge_symbols(m, s);
    for (int32_t i = 0; count > 0 && i >= 0; i = s->symbols[i].next)
        TRY(id_list_add(out, s->symbols[i].id));
    return OK;
}

static enum code encode_cached(const struct bpe *m, struct bpe_scratch *s, const char *word, size_t n, struct id_list *out)
{
    if (s->cache == NULL || n > CACHE_WORD)
        return encode_whole(m, s, word, n, out);
    struct cached_word *c = &s->cache->v[hash64(word, n) % CACHE_SLOTS];
    if (c->n == n && memcmp(c->word, word, n) == 0)
        return id_list_add_all(out, c->ids, c->n_ids);
    int64_t before = out->n;
    TRY(encode_whole(m, s, word, n, out));
    if (out->n - before <= CACHE_IDS) {
        c->n = (uint8_t)n;
        c->n_ids = (uint8_t)(out->n - before);
        memcpy(c->word, word, n);
        memcpy(c->ids, out->p + before, c->n_ids * sizeof *c->ids);
    }
    return OK;
}

enum code bpe_encode(const struct bpe *m, struct bpe_scratch *s, const char *word, size_t n, struct id_list *out)
{
    if (n == 0)
        return OK;
    int32_t whole = m->ignore_merges ? vocab_find(&m->vocab, word, n) : -1;
    if (whole >= 0)
        return id_list_add(out, whole);
    if (!m->split_at_meta)
        return encode_cached(m, s, word, n, out);
    size_t from = 0;
    for (size_t i = 3; i + 3 <= n; i++) {
        const char *p = memchr(word + i, META[0], n - i);
        if (p == NULL)
            break;
        i = (size_t)(p - word);
        if (i + 3 > n || memcmp(p, META, 3) != 0 || i < from + 3 || memcmp(p - 3, META, 3) == 0)
            continue;
        TRY(encode_cached(m, s, word + from, i - from, out));
        from = i;
    }
    return encode_cached(m, s, word + from, n - from, out);
}

enum code bpe_scratch_cache(struct bpe_scratch *s)
{
    if (s->cache == NULL)
        s->cache = calloc(1, sizeof *s->cache);
    return s->cache != NULL ? OK : fail(ERR_MEMORY, "no memory for the word cache");
}

void bpe_scratch_free(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    free(s->cache);
    *s = (struct bpe_scratch){0};
}
