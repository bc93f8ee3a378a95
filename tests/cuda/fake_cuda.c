/* See fake_cuda.h. */
#include <cuda_runtime_api.h>

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fake_cuda.h"
#include "fake_runtime.h"

#define ALLOCATIONS 4096
#define DRY_BYTES ((size_t)64 << 20)

struct fake_cuda fake;

struct operation {
    void (*run)(void *context);
    void *context;
    size_t bytes;
};
struct list {
    struct operation *at;
    long n, room;
};
struct cudaGraph_fake {
    struct list list;
};
struct event {
    long after;
};
struct allocation {
    char *p;
    size_t bytes;
    int pinned;
};

static struct list stream, *capture; /* the one stream; the graph being recorded */
static long done;                    /* operations of the stream that have run */
static struct allocation allocations[ALLOCATIONS];
static cudaError_t last;

void fake_fault(const char *format, ...)
{
    va_list v;
    if (fake.fault[0])
        return;
    va_start(v, format);
    vsnprintf(fake.fault, sizeof fake.fault, format, v);
    va_end(v);
}

void fake_cuda_reset(void)
{
    memset(&fake, 0, sizeof fake);
    fake.driver = CUDART_VERSION;
    fake.devices = 1;
    fake.major = 9;
}

cudaError_t fake_error(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

/* ---- the stream ---- */

static void add(struct list *l, void (*run)(void *), const void *context, size_t bytes)
{
    if (l->n == l->room) {
        l->room = l->room ? 2 * l->room : 1024;
        l->at = realloc(l->at, (size_t)l->room * sizeof *l->at);
    }
    struct operation o = {run, malloc(bytes ? bytes : 1), bytes};
    memcpy(o.context, context, bytes);
    l->at[l->n++] = o;
}

void fake_enqueue(void (*run)(void *), const void *context, size_t bytes)
{
    fake.captured += capture != NULL;
    add(capture ? capture : &stream, run, context, bytes);
}

static void run_to(long n)
{
    if (capture)
        fake_fault("the host waits while a graph is recorded");
    fake.waits += done < n;
    for (; done < n; done++) {
        stream.at[done].run(stream.at[done].context);
        free(stream.at[done].context);
    }
}

/* ---- memory ---- */

static cudaError_t allocate(void **p, size_t bytes, int pinned)
{
    if (capture)
        fake_fault("an allocation while a graph is recorded");
    if (fake.fail_at > 0 && --fake.fail_at == 0)
        return fake_error(cudaErrorMemoryAllocation);
    for (int i = 0; i < ALLOCATIONS; i++)
        if (!allocations[i].p) {
            char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (at == MAP_FAILED)
                return fake_error(cudaErrorMemoryAllocation);
            if (!fake.dry || bytes < DRY_BYTES)
                memset(at, 0xa5, bytes); /* fresh memory is not zero */
            struct allocation a = {at, bytes, pinned};
            allocations[i] = a;
            fake.allocations++;
            fake.live++;
            fake.device_bytes += pinned ? 0 : bytes;
            *p = at;
            return cudaSuccess;
        }
    return fake_error(cudaErrorMemoryAllocation);
}

static cudaError_t release(void *p, int pinned)
{
    run_to(stream.n); /* as cudaFree does */
    for (int i = 0; i < ALLOCATIONS; i++)
        if (p && allocations[i].p == p) {
            if (allocations[i].pinned != pinned)
                fake_fault("freed as the other kind of memory");
            munmap(p, allocations[i].bytes);
            fake.device_bytes -= pinned ? 0 : allocations[i].bytes;
            allocations[i].p = NULL;
            fake.live--;
            return cudaSuccess;
        }
    fake_fault("freed what was not allocated");
    return fake_error(cudaErrorInvalidValue);
}

static const struct allocation *find(const void *p, size_t bytes)
{
    for (int i = 0; i < ALLOCATIONS; i++)
        if (allocations[i].p && (const char *)p >= allocations[i].p && (const char *)p + bytes <= allocations[i].p + allocations[i].bytes)
            return &allocations[i];
    return NULL;
}

int fake_is_device(const void *p, size_t bytes)
{
    const struct allocation *a = find(p, bytes);
    return a && !a->pinned;
}

cudaError_t CUDARTAPI cudaMalloc(void **p, size_t bytes)
{
    return allocate(p, bytes, 0);
}
cudaError_t CUDARTAPI cudaMallocHost(void **p, size_t bytes)
{
    return allocate(p, bytes, 1);
}
cudaError_t CUDARTAPI cudaFree(void *p)
{
    return release(p, 0);
}
cudaError_t CUDARTAPI cudaFreeHost(void *p)
{
    return release(p, 1);
}
cudaError_t CUDARTAPI cudaMemGetInfo(size_t *spare, size_t *total)
{
    *total = (size_t)1 << 37;
    *spare = *total - fake.device_bytes;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    const struct allocation *in = find(p, 1);
    memset(a, 0, sizeof *a);
    a->type = !in ? cudaMemoryTypeUnregistered : in->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    return cudaSuccess;
}

struct copy {
    void *dst;
    const void *src;
    size_t bytes;
};
static void copy_run(void *context)
{
    const struct copy *c = context;
    memcpy(c->dst, c->src, c->bytes);
}
cudaError_t CUDARTAPI cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    const struct allocation *to = find(dst, bytes), *from = find(src, bytes);
    const struct copy c = {dst, src, bytes};
    (void)s;
    if (kind == cudaMemcpyHostToDevice   ? !(to && !to->pinned && from && from->pinned)
        : kind == cudaMemcpyDeviceToHost ? !(from && !from->pinned)
                                         : !(to && from && !to->pinned && !from->pinned))
        fake_fault("a copy of kind %d from or to memory of another kind, or beyond its end", (int)kind);
    if (fake.dry && kind == cudaMemcpyDeviceToDevice && bytes > DRY_BYTES)
        return cudaSuccess;
    fake_enqueue(copy_run, &c, sizeof c);
    return cudaSuccess;
}

struct set {
    void *dst;
    int value;
    size_t bytes;
};
static void set_run(void *context)
{
    const struct set *c = context;
    if (!fake.dry || c->bytes < DRY_BYTES)
        memset(c->dst, c->value, c->bytes);
}
cudaError_t CUDARTAPI cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t s)
{
    const struct set c = {dst, value, bytes};
    (void)s;
    if (!fake_is_device(dst, bytes))
        fake_fault("a fill beyond device memory");
    fake_enqueue(set_run, &c, sizeof c);
    return cudaSuccess;
}

/* ---- device, stream, events, graphs ---- */

cudaError_t CUDARTAPI cudaGetDeviceCount(int *n)
{
    *n = 0;
    if (fake.driver == 0 || fake.driver < CUDART_VERSION / 1000 * 1000)
        return fake_error(cudaErrorInsufficientDriver);
    if (fake.devices == 0)
        return fake_error(cudaErrorNoDevice);
    *n = fake.devices;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaDriverGetVersion(int *v)
{
    *v = fake.driver;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetDeviceProperties(struct cudaDeviceProp *p, int i)
{
    (void)i;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Fake GPU");
    p->major = fake.major;
    p->minor = fake.minor;
    p->multiProcessorCount = 132;
    p->sharedMemPerBlockOptin = FAKE_SMEM_MAX;
    p->totalGlobalMem = (size_t)1 << 37;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaSetDevice(int i)
{
    return i == 0 ? cudaSuccess : fake_error(cudaErrorInvalidDevice);
}
cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    (void)flags;
    *s = (cudaStream_t)(void *)&stream;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t s)
{
    (void)s;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t s)
{
    (void)s;
    run_to(stream.n);
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetLastError(void)
{
    cudaError_t e = last;
    last = cudaSuccess;
    return e;
}
cudaError_t CUDARTAPI cudaPeekAtLastError(void)
{
    return last;
}
const char *CUDARTAPI cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation ? "out of memory" : "a fake error";
}

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    *e = calloc(1, sizeof(struct event));
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, 0);
}
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t e)
{
    free(e);
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    (void)s;
    ((struct event *)(void *)e)->after = stream.n;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t e)
{
    const long n = ((struct event *)(void *)e)->after;
    run_to(n < stream.n ? n : stream.n);
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    (void)a, (void)b;
    *ms = 1.0f;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    (void)s, (void)mode;
    if (capture)
        return fake_error(cudaErrorIllegalState);
    capture = calloc(1, sizeof *capture);
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    (void)s;
    *g = (cudaGraph_t)(void *)capture;
    capture = NULL;
    return *g ? cudaSuccess : fake_error(cudaErrorIllegalState);
}
cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags)
{
    const struct list *from = (const struct list *)(void *)g;
    struct list *to = calloc(1, sizeof *to);
    (void)flags;
    for (long i = 0; i < from->n; i++)
        add(to, from->at[i].run, from->at[i].context, from->at[i].bytes);
    *x = (cudaGraphExec_t)(void *)to;
    fake.live++;
    return cudaSuccess;
}
static void list_free(struct list *l)
{
    for (long i = 0; i < l->n; i++)
        free(l->at[i].context);
    free(l->at);
    free(l);
}
cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t g)
{
    list_free((struct list *)(void *)g);
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t x)
{
    list_free((struct list *)(void *)x);
    fake.live--;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    const struct list *l = (const struct list *)(void *)x;
    (void)s;
    for (long i = 0; i < l->n; i++)
        fake_enqueue(l->at[i].run, l->at[i].context, l->at[i].bytes);
    return cudaSuccess;
}

cudaStream_t fake_stream(void)
{
    return (cudaStream_t)(void *)&stream;
}
