/* Buffers between two pages that neither reads nor writes may touch. One mapping per buffer serves all problems. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checker.h"

enum { CANARY = 0xc5, MARGIN = 4096 };
static struct {
    unsigned char *memory, *start;
    int64_t room, bytes;
} buffers[BUFFERS];

static void grow(int which, int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE), room = (2 * bytes + 4 * MARGIN + page - 1) / page * page;
    if (buffers[which].memory) munmap(buffers[which].memory, (size_t)(buffers[which].room + 2 * page));
    unsigned char *memory =
        mmap(NULL, (size_t)(room + 2 * page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, (size_t)page, PROT_NONE) ||
        mprotect(memory + page + room, (size_t)page, PROT_NONE)) {
        perror("checker: no protected pages");
        exit(2);
    }
    buffers[which].memory = memory;
    buffers[which].room = room;
}

unsigned char *buffer_low(int which) { return buffers[which].memory + sysconf(_SC_PAGESIZE); }
unsigned char *buffer_high(int which) { return buffer_low(which) + buffers[which].room; }

unsigned char *buffer_take(int which, int64_t bytes, int64_t align, place where, int misaligned) {
    if (bytes + 2 * MARGIN > buffers[which].room) grow(which, bytes);
    unsigned char *start = buffer_low(which) + misaligned;
    if (where == AT_END) {
        const uintptr_t at = (uintptr_t)(buffer_high(which) - bytes) - (uintptr_t)misaligned;
        start = (unsigned char *)((at - (misaligned ? 0 : at % (uintptr_t)align)));
    }
    buffers[which].start = start;
    buffers[which].bytes = bytes;
    const int64_t before = start - buffer_low(which), after = buffer_high(which) - start - bytes;
    memset(start - (before < MARGIN ? before : MARGIN), CANARY, (size_t)(before < MARGIN ? before : MARGIN));
    memset(start + bytes, CANARY, (size_t)(after < MARGIN ? after : MARGIN));
    return start;
}

unsigned char *buffer_start(int which) { return buffers[which].start; }

uint64_t buffer_sum(int which) {
    uint64_t sum = 0, word = 0;
    for (int64_t i = 0; i < buffers[which].bytes; i += 8) {
        const int64_t left = buffers[which].bytes - i;
        memcpy(&word, buffers[which].start + i, (size_t)(left < 8 ? left : 8));
        sum = (sum ^ word) * 0x9e3779b97f4a7c15;
        sum ^= sum >> 29;
    }
    return sum;
}

static int all_canaries(const unsigned char *bytes, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (bytes[i] != CANARY) return 0;
    return 1;
}

int canaries_are_whole(int which) {
    const unsigned char *start = buffers[which].start, *end = start + buffers[which].bytes;
    const int64_t before = start - buffer_low(which), after = buffer_high(which) - end;
    const int64_t low = before < MARGIN ? before : MARGIN, high = after < MARGIN ? after : MARGIN;
    return all_canaries(start - low, low) && all_canaries(end, high);
}

static sigjmp_buf back;

static void caught(int number) { siglongjmp(back, number); }

const char *guarded(void (*job)(void *), void *argument) {
    static int ready;
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGALRM};
    for (size_t i = 0; !ready && i < sizeof signals / sizeof signals[0]; i++) signal(signals[i], caught);
    ready = 1;
    const int number = sigsetjmp(back, 1);
    if (number == 0) {
        alarm(60);
        job(argument);
    }
    alarm(0);
    return number == 0 ? NULL : strsignal(number);
}
