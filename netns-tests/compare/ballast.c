/*
 * Preloaded into a daemon that splits in two: gives its child, and nobody else, a large heap that is all there, as
 * years of service do. A process is torn down with its memory, page by page.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define BALLAST ((size_t)1 << 30)

static void take(void)
{
    void *memory = mmap(NULL, BALLAST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return;
    /* A heap that grew is made of small pages. */
    madvise(memory, BALLAST, MADV_NOHUGEPAGE);
    if (madvise(memory, BALLAST, MADV_POPULATE_WRITE) != 0)
        memset(memory, 1, BALLAST);
}

__attribute__((constructor)) static void prepare(void)
{
    if (strcmp(program_invocation_short_name, "twinlog") == 0)
        pthread_atfork(NULL, NULL, take);
}
