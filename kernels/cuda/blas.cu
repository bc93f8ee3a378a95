/* Finding cuBLASLt: under its name with the version this build's headers have, where the loader looks (LD_LIBRARY_PATH, ldconfig),
 * then in the toolkit it was built with. */
#include "device.cuh"

#include "blas.cuh"

#include <dlfcn.h>
#include <pthread.h>

#define BLAS_TEXT_(x) #x
#define BLAS_TEXT(x) BLAS_TEXT_(x)
#define BLAS_NAME "libcublasLt.so." BLAS_TEXT(CUBLAS_VER_MAJOR)

namespace CUDA_NS {

/* Loaded once and kept: the one thing here that outlives a device. */
static struct blas table;
static const char *missing;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void)
{
    void *library = dlopen(BLAS_NAME, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        library = dlopen(GQAKIT_CUDA_LIB "/" BLAS_NAME, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        missing = "the library itself";
        return;
    }
#define BLAS_FIND(f)                                                     \
    if ((*(void **)&table.f = dlsym(library, #f)) == NULL && !missing) \
        missing = #f;
    BLAS_FUNCTIONS(BLAS_FIND)
}

enum code blas_load(const struct blas **blas)
{
    pthread_once(&once, load);
    if (missing != NULL)
        return fail(ERR_DEVICE, BLAS_NAME " of the CUDA toolkit is not usable here (%s is missing; put its folder into LD_LIBRARY_PATH)", missing);
    *blas = &table;
    return OK;
}

} // namespace CUDA_NS
