/* Power loss, played back; see faults.h. The model: a tree of nodes. Every call that changed the disk becomes a change of one node: a directory's
 * names (LINK, REMOVE, RENAME, EXCHANGE: each whole or not at all) or a file's bytes and size (WRITE, SIZE). fsync of a node makes the changes
 * of that node so far certain; no other promise is used (not even that names appear in order). After a cut, certain changes have happened,
 * and of the others any subset: a write also by its first half alone. */
#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "faults.h"

enum { NODES = 4096, NAMES = 64, CHANGES = 16384 };
enum change_kind { LINK, REMOVE, RENAME, EXCHANGE, WRITE, SIZE };

struct name { char text[120]; int node; };
struct node { int is_dir, n; struct name names[NAMES]; unsigned char *bytes; size_t size, capacity; };
struct change { enum change_kind kind; int node, x, y, certain; char a[120], b[120]; int64_t offset, n; const unsigned char *bytes; };

static struct node *live, *kept; /* [NODES]: as the system shows it, as the disk has it */
static struct change *changes;
static int n_nodes, n_changes;

static int *slot_of(struct node *d, const char *name)
{
    for (int i = 0; i < d->n; i++)
        if (!strcmp(d->names[i].text, name))
            return &d->names[i].node;
    return NULL;
}

static void name_set(struct node *d, const char *name, int node)
{
    int *slot = slot_of(d, name);
    if (!slot) {
        CHECK(d->n < NAMES && strlen(name) < sizeof d->names[0].text);
        snprintf(d->names[d->n].text, sizeof d->names[0].text, "%s", name);
        slot = &d->names[d->n++].node;
    }
    *slot = node;
}

static void name_drop(struct node *d, const char *name, int node)
{
    for (int i = 0; i < d->n; i++)
        if (!strcmp(d->names[i].text, name) && d->names[i].node == node) {
            d->names[i] = d->names[--d->n];
            return;
        }
}

static void bytes_size(struct node *f, size_t n)
{
    if (n > f->capacity) {
        f->capacity = n + 4096;
        f->bytes = realloc(f->bytes, f->capacity);
        CHECK(f->bytes);
    }
    if (n > f->size)
        memset(f->bytes + f->size, 0, n - f->size);
    f->size = n;
}

static void apply(struct node *tree, const struct change *c, size_t part)
{
    struct node *t = &tree[c->node];
    switch (c->kind) {
    case LINK: name_set(t, c->a, c->x); break;
    case REMOVE: name_drop(t, c->a, c->x); break;
    case RENAME:
        name_drop(t, c->a, c->x);
        name_set(t, c->b, c->x);
        break;
    case EXCHANGE:
        name_set(t, c->a, c->y);
        name_set(t, c->b, c->x);
        break;
    case WRITE:
        if (t->size < (size_t)c->offset + part)
            bytes_size(t, (size_t)c->offset + part);
        memcpy(t->bytes + c->offset, c->bytes, part);
        break;
    case SIZE: bytes_size(t, (size_t)c->n); break;
    }
}

/* ---- the tree on the disk -------------------------------------------------------------------------------------------- */

static int node_new(int is_dir)
{
    CHECK(n_nodes < NODES);
    memset(&live[n_nodes], 0, sizeof *live);
    live[n_nodes].is_dir = is_dir;
    return n_nodes++;
}

static int snapshot(const char *path)
{
    char **names;
    int n, is_dir = io_is_dir(path), node = node_new(is_dir);
    if (!is_dir) {
        char *bytes;
        size_t size;
        assert_ok(io_read_all(path, 1 << 28, &bytes, &size));
        live[node] = (struct node){.bytes = (unsigned char *)bytes, .size = size, .capacity = size};
        return node;
    }
    assert_ok(io_list(path, &names, &n));
    for (int i = 0; i < n; i++) {
        char *below = io_join(path, names[i]);
        int child = snapshot(below);
        name_set(&live[node], names[i], child);
        free(below);
    }
    io_names_free(names, n);
    return node;
}

static void materialize(const struct node *tree, int node, const char *path)
{
    const struct node *t = &tree[node];
    if (!t->is_dir) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0);
        assert_ok(io_pwrite(fd, path, t->bytes, t->size, 0));
        close(fd);
        return;
    }
    CHECK(mkdir(path, 0700) == 0);
    for (int i = 0; i < t->n; i++) {
        char *below = io_join(path, t->names[i].text);
        materialize(tree, t->names[i].node, below);
        free(below);
    }
}

/* ---- from calls to changes ------------------------------------------------------------------------------------------- */

/* Node of the directory that holds path, and the last name; -1 when path is outside the scene. */
static int find_dir(const char *root, const char *path, char last[120])
{
    size_t n = strlen(root);
    int at = 0;
    if (strncmp(path, root, n) || path[n] != '/')
        return -1;
    for (const char *p = path + n + 1;;) {
        size_t k = strcspn(p, "/");
        CHECK(k < 120);
        memcpy(last, p, k);
        last[k] = 0;
        if (!p[k])
            return at;
        int *next = slot_of(&live[at], last);
        CHECK(next);
        at = *next;
        p += k + 1;
    }
}

static int find(const char *root, const char *path)
{
    char last[120];
    if (!strcmp(path, root))
        return 0;
    int dir = find_dir(root, path, last), *slot = dir < 0 ? NULL : slot_of(&live[dir], last);
    return slot ? *slot : -1;
}

static void change(struct change c)
{
    CHECK(n_changes < CHANGES);
    changes[n_changes++] = c;
    apply(live, &c, c.kind == WRITE ? (size_t)c.n : 0);
}

static void take(const char *root, const struct fault_op *op)
{
    char a[120] = "", b[120] = "";
    int file = op->kind == OP_WRITE || op->kind == OP_SIZE || op->kind == OP_SYNC, node = file ? find(root, op->a) : find_dir(root, op->a, a);
    if (node < 0)
        return;
    struct change c = {.node = node, .offset = op->offset, .n = op->n, .bytes = (const unsigned char *)(op + 1)};
    memcpy(c.a, a, sizeof a);
    int *slot = file ? NULL : slot_of(&live[node], a);
    c.x = slot ? *slot : -1;
    switch (op->kind) {
    case OP_MAKE_FILE:
    case OP_MAKE_DIR:
        c.kind = LINK;
        c.x = node_new(op->kind == OP_MAKE_DIR);
        change(c);
        return;
    case OP_REMOVE: c.kind = REMOVE; break;
    case OP_RENAME:
    case OP_EXCHANGE:
        CHECK(find_dir(root, op->b, b) == node); /* all of ours stay in their directory */
        memcpy(c.b, b, sizeof b);
        c.kind = op->kind == OP_RENAME ? RENAME : EXCHANGE;
        slot = slot_of(&live[node], b);
        c.y = slot ? *slot : -1;
        break;
    case OP_WRITE: c.kind = WRITE; break;
    case OP_SIZE: c.kind = SIZE; break;
    case OP_SYNC:
        for (int i = 0; i < n_changes; i++)
            changes[i].certain |= changes[i].node == node;
        return;
    }
    CHECK(file || c.x >= 0);
    change(c);
}

/* ---- cutting --------------------------------------------------------------------------------------------------------- */

static void nodes_free(struct node *t, int n)
{
    for (int i = 0; i < n; i++)
        free(t[i].bytes);
}

static void copy_nodes(struct node *to, const struct node *from, int n)
{
    memcpy(to, from, (size_t)n * sizeof *to);
    for (int i = 0; i < n; i++)
        if (from[i].bytes) {
            to[i].bytes = malloc(from[i].capacity + 1);
            CHECK(to[i].bytes);
            memcpy(to[i].bytes, from[i].bytes, from[i].size);
        }
}

/* Builds in s->dir what is left when the power goes after `cut` calls: uncertain changes happen with probability p. Returns how many were in doubt. */
static int cut_after(const struct scene *s, const struct fault_log *log, const struct node *start, int n_start, int cut, double p, uint64_t seed)
{
    const char *at = (const char *)(log + 1);
    int doubtful = 0;
    n_nodes = n_start;
    n_changes = 0;
    copy_nodes(live, start, n_start);
    for (int i = 0; i < cut; i++) {
        const struct fault_op *op = (const struct fault_op *)(const void *)at;
        take(s->dir, op);
        at += sizeof *op + (op->bytes + 7) / 8 * 8;
    }
    copy_nodes(kept, start, n_start);
    for (int i = n_start; i < n_nodes; i++)
        kept[i] = (struct node){.is_dir = live[i].is_dir};
    for (int i = 0; i < n_changes; i++) {
        struct change *c = &changes[i];
        double u = random_uniform(seed, STREAM_TEST, 7, (uint64_t)i);
        doubtful += !c->certain;
        if (c->certain || u < p)
            apply(kept, c, c->certain || u < 0.7 * p || p >= 1 ? (size_t)c->n : (size_t)c->n / 2);
    }
    assert_ok(io_remove_tree(s->dir));
    materialize(kept, 0, s->dir);
    nodes_free(live, n_nodes);
    nodes_free(kept, n_nodes);
    return doubtful;
}

void fault_power(const struct scene *s, int random)
{
    size_t capacity = (size_t)64 << 20;
    struct fault_log *log = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct node *start = calloc(NODES, sizeof *start);
    CHECK(log != MAP_FAILED && start);
    live = calloc(NODES, sizeof *live);
    kept = calloc(NODES, sizeof *kept);
    changes = calloc(CHANGES, sizeof *changes);
    CHECK(live && kept && changes);
    s->before();
    n_nodes = 0;
    assert_int_equal(snapshot(s->dir), 0);
    int n_start = n_nodes, olds = 0, news = 0, cases = 0;
    memcpy(start, live, (size_t)n_nodes * sizeof *start);
    log->capacity = capacity - sizeof *log;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
        fault_record(log);
        enum code c = s->act();
        fault_record(NULL);
        _exit((int)c);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0 && !log->overflow && log->count > 8);
    int every = soak() ? 1 : 1 + log->count / 24;
    for (int i = 0; i < 2 * log->count + random; i++) {
        int cut = i < 2 * log->count ? 1 + i / 2 : (int)random_int(11, (uint64_t)i, 1, log->count);
        static const double share[] = {0.15, 0.4, 0.6, 0.85};
        double p = i < 2 * log->count ? i % 2 : share[i % 4];
        if (i < 2 * log->count && cut % every && cut != log->count)
            continue;
        cut_after(s, log, start, n_start, cut, p, (uint64_t)i);
        int new = s->after();
        news += new;
        olds += !new;
        cases++;
        if (cut == log->count && !new)
            print_error("%s: it was said to be done, and is lost (share kept %g)\n", s->name, p);
        assert_true(cut < log->count || new);
    }
    print_message("  %s: %d calls recorded, %d power cuts: old %d, new %d\n", s->name, log->count, cases, olds, news);
    assert_true(olds > 0 || s->same);
    assert_true(news > 0);
    nodes_free(start, n_start);
    free(start);
    free(live);
    free(kept);
    free(changes);
    munmap(log, capacity);
}
