/* What surrounds every task: the floating-point state, the scratch memory, forks, and whether threads start. */
#include "conv.h"

#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__) || defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

#define LARGE_PAGE ((size_t)2 << 20)

/* Subnormal operands cost some 100 cycles each on most x86 cores and slow a convolution down 60-110 times (design
 * measurement on a Xeon), so unless exact they are read as, and flushed to, zero. Only inside a task: the
 * caller's register comes back as it was, its sticky exception flags included. */
#if defined(__x86_64__) || defined(__SSE2__)
typedef unsigned int fp_state;
enum { FLUSH = 0x8040 }; /* MXCSR: FTZ bit 15, DAZ bit 6 */
static fp_state fp_read(void) { return _mm_getcsr(); }
static void fp_write(fp_state state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
typedef uint64_t fp_state;
enum { FLUSH = 1 << 24 }; /* FPCR.FZ */
#if defined(__clang__)
static fp_state fp_read(void) { return __builtin_arm_rsr64("fpcr"); }
static void fp_write(fp_state state) { __builtin_arm_wsr64("fpcr", state); }
#else
static fp_state fp_read(void) { return __builtin_aarch64_get_fpcr64(); }
static void fp_write(fp_state state) { __builtin_aarch64_set_fpcr64(state); }
#endif
#else
typedef int fp_state;
enum { FLUSH = 0 };
static fp_state fp_read(void) { return 0; }
static void fp_write(fp_state state) { (void)state; }
#endif

void conv_run_task(const conv_algo *algo, const conv_problem *p, const conv_io *io, size_t task, void *scratch) {
    const fp_state before = fp_read();
    fp_write(p->exact ? before & ~(fp_state)FLUSH : before | (fp_state)FLUSH);
    algo->run(p, io, task, scratch);
    fp_write(before);
}

/* Packed weights of some MiB are streamed through once a call, each page of 4 KiB of them a miss of the TLB: large
 * pages where the system gives them on request (Linux). Golden Cove, 512 x 512 x 3 x 3 at 7 x 7 outputs: 1800 to 1640
 * us. C11 asks for a size that the alignment divides, and allocators that insist return NULL; what that adds is never
 * touched. The first CONV_ALIGN bytes hold the size of the rest. */
static void *block_new(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * LARGE_PAGE) return NULL;
    const size_t rounded = (bytes / CONV_ALIGN + 2) * CONV_ALIGN;
#if defined(MADV_HUGEPAGE)
    const int large = rounded >= LARGE_PAGE;
    const size_t align = large ? LARGE_PAGE : CONV_ALIGN;
    size_t *block = aligned_alloc(align, (rounded + align - 1) / align * align);
    if (block && large) madvise(block, rounded, MADV_HUGEPAGE); /* advice: where it is not taken nothing is lost */
#else
    size_t *block = aligned_alloc(CONV_ALIGN, rounded);
#endif
    if (block) *block = bytes;
    return block;
}

/* Blocks that are kept between calls. Whoever exchanges one for NULL owns it: no lock, and a second thread simply
 * allocates its own. */
typedef _Atomic(void *) kept_block;

static void *block_take(kept_block *kept, size_t bytes, size_t most) {
    char *block = atomic_exchange(kept, NULL);
    if (block && (*(size_t *)block < bytes || *(size_t *)block > most)) {
        free(block);
        block = NULL;
    }
    if (!block) block = block_new(bytes);
    return block ? block + CONV_ALIGN : NULL;
}

static void block_give(kept_block *kept, void *memory) {
    if (memory) free(atomic_exchange(kept, (void *)((char *)memory - CONV_ALIGN)));
}

/* A small convolution does not pay for malloc and page faults of its scratch. */
static kept_block scratch;

void *conv_scratch_take(size_t bytes) { return block_take(&scratch, bytes, SIZE_MAX); }

void conv_scratch_give(void *memory) { block_give(&scratch, memory); }

/* Nor does a call that packs its weights, page by page of new memory as slow as the packing (Zen 3, 9 MiB: 2.6 to 1.3
 * ms): what was freed last is kept, if it is large enough for malloc to return it to the system, and not too large. */
static kept_block weights;
enum { LEAST_KEPT = 128 << 10, MOST_KEPT = 32 << 20 };

void *conv_memory_new(size_t bytes) {
    if (bytes >= LEAST_KEPT && bytes <= MOST_KEPT) return block_take(&weights, bytes, bytes + bytes / 4);
    char *block = block_new(bytes);
    return block ? block + CONV_ALIGN : NULL;
}

void conv_memory_free(void *memory) {
    if (!memory) return;
    size_t *block = (size_t *)((char *)memory - CONV_ALIGN);
    if (*block >= LEAST_KEPT && *block <= MOST_KEPT)
        block_give(&weights, memory);
    else
        free(block);
}

static int forked;

#if !defined(_WIN32)
static void note_fork(void) { forked = 1; }
int conv_watch_forks(void) { return pthread_atfork(NULL, NULL, note_fork); }
#else
int conv_watch_forks(void) { return 0; }
#endif

int conv_in_forked_child(void) { return forked; }

/* libgomp ends the whole process where it cannot start a thread: a user's or a container's limit on processes. So
 * whoever calls with more threads than ever before first starts that many for a moment, all alive at the same time, and
 * goes on with those that could be. Some 20 us a thread, once in each calling thread; a limit that is reached later
 * is not seen. */
#if !defined(_WIN32)
enum { MOST_THREADS = 1024 };

typedef struct {
    pthread_t thread;
    pthread_mutex_t *gate;
    long id; /* the system's */
} probe;

static void *wait_at_gate(void *argument) {
    probe *self = argument;
#if defined(__linux__)
    self->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(self->gate);
    pthread_mutex_unlock(self->gate);
    return NULL;
}

/* A joined thread counts against the limit until the kernel has taken it out of its tables, a moment later: libgomp's
 * own would be refused in its place (seen once on a busy machine; always where a tracer takes note of its end late).
 * 0.2 s at most: its number may be another thread's by then. */
static void wait_until_gone(const probe *joined) {
#if defined(__linux__)
    const struct timespec moment = {0, 50000};
    for (int i = 0; i < 4000 && syscall(SYS_tgkill, getpid(), joined->id, 0) == 0; i++) nanosleep(&moment, NULL);
#else
    (void)joined;
#endif
}

int conv_startable_threads(int wanted) {
    static _Thread_local int seen = 1; /* the caller counts as one */
    if (wanted <= seen) return wanted;
    probe probes[MOST_THREADS];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int started = 1;
    pthread_mutex_lock(&gate);
    for (; started < wanted && started < MOST_THREADS; started++) {
        probe *next = &probes[started];
        *next = (probe){.gate = &gate};
        if (pthread_create(&next->thread, NULL, wait_at_gate, next) != 0) break;
    }
    pthread_mutex_unlock(&gate);
    for (int i = 1; i < started; i++) pthread_join(probes[i].thread, NULL);
    for (int i = 1; i < started; i++) wait_until_gone(&probes[i]);
    pthread_mutex_destroy(&gate);
    if (started > seen) seen = started;
    return seen; /* not started: beside those that libgomp keeps fewer could be started anew */
}
#else
int conv_startable_threads(int wanted) { return wanted; }
#endif
