/* LD_PRELOAD: one allocation of many fails on request, and blocks are counted, so that a test can let each of them fail
 * and see whether any is lost. Small ones are left alone: they are the interpreter's own. glibc only. */
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static size_t least = (size_t)-1;
static atomic_long until_failure, live;

/* The n-th allocation of `bytes` or more from now on fails; none for 0. */
void malloc_fail_at(long n, size_t bytes) {
    least = bytes;
    until_failure = n;
}

long malloc_until_failure(void) { return until_failure; }
long malloc_live(void) { return live; }

static int fails(size_t bytes) {
    return bytes >= least && until_failure > 0 && atomic_fetch_sub(&until_failure, 1) == 1;
}

/* By the size that the block got, which is the same when it is freed. */
static void *counted(void *block) {
    if (block && malloc_usable_size(block) >= 1024) live++;
    return block;
}

static void forget(void *block) {
    if (block && malloc_usable_size(block) >= 1024) live--;
}

void *malloc(size_t bytes) { return fails(bytes) ? NULL : counted(__libc_malloc(bytes)); }
void *calloc(size_t n, size_t bytes) { return fails(n * bytes) ? NULL : counted(__libc_calloc(n, bytes)); }

/* As strict as C11 allows: a size that the alignment does not divide is refused. */
void *aligned_alloc(size_t align, size_t bytes) {
    return bytes % align || fails(bytes) ? NULL : counted(__libc_memalign(align, bytes));
}

void *realloc(void *block, size_t bytes) {
    if (fails(bytes)) return NULL;
    forget(block);
    void *moved = __libc_realloc(block, bytes);
    return counted(moved || !bytes ? moved : block);
}

void free(void *block) {
    forget(block);
    __libc_free(block);
}
