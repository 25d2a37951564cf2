/* Large writes to a file, and what is done to whole ranges of memory. */
#define _GNU_SOURCE
#include "datapath.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct write_job { /* consecutive sources that go to one place of the file */
    uint64_t offset;
    uint64_t first;
    uint64_t count;
};

struct range {
    uint64_t address;
    uint64_t size;
};

struct writing {
    int fd;
    int failed; /* errno of the first failure */
    struct range *ranges;
};

static int write_fully(int fd, const uint8_t *source, size_t size, uint64_t offset) {
    while (size > 0) {
        ssize_t written = pwrite(fd, source, size, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EINVAL && (fcntl(fd, F_GETFL) & O_DIRECT)) {
            /* Aligned otherwise than this file system wants: through the page cache, then. */
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT);
            continue;
        }
        if (written <= 0)
            return written < 0 ? errno : ENOSPC;
        source += written, size -= (size_t)written, offset += (uint64_t)written;
    }
    return 0;
}

/* Gathers up to IO_BYTES in a bounce buffer, whose huge pages make a request of few segments: from
 * the 4 KiB pages of shared memory a virtual disk was seen to take half as many bytes per second. */
static uint8_t write_one(struct batch *batch, size_t index) {
    const struct write_job *job = (const struct write_job *)batch->jobs + index;
    struct writing *writing = (struct writing *)(uintptr_t)batch->part_addresses[index];
    const struct range *range = writing->ranges + job->first;
    size_t size = 0;
    if (__atomic_load_n(&writing->failed, __ATOMIC_RELAXED))
        return LATE;
    uint8_t *bounce = bounce_take();
    int failed = bounce == NULL ? ENOMEM : 0;
    if (!failed) {
        for (uint64_t i = 0; i < job->count; i++, range++) {
            copy_bytes(bounce + size, (const uint8_t *)(uintptr_t)range->address, range->size);
            size += range->size;
        }
        copy_fence();
        failed = write_fully(writing->fd, bounce, size, job->offset);
        bounce_give(bounce);
    }
    if (failed)
        __atomic_store_n(&writing->failed, failed, __ATOMIC_RELAXED);
    return failed ? UNREADABLE : MOVED;
}

/* Writes `count` memory ranges, one after the other, at `offset`: some large writes in flight at
 * once, in the order in which they lie. 0 or a negative errno; nothing is synced. */
int agm_write(int fd, const uint64_t *addresses, const uint64_t *sizes, size_t count,
              uint64_t offset, int threads) {
    size_t pieces = 0, jobs_count = 0;
    for (size_t i = 0; i < count; i++)
        pieces += (sizes[i] + IO_BYTES - 1) / IO_BYTES;
    if (pieces == 0)
        return 0;
    struct writing writing = {.fd = fd, .ranges = malloc(pieces * sizeof(struct range))};
    struct write_job *jobs = malloc(pieces * sizeof *jobs);
    uint64_t *owners = malloc(pieces * sizeof *owners), *unused = calloc(pieces, sizeof *unused);
    uint8_t *outcomes = malloc(pieces);
    if (!writing.ranges || !jobs || !owners || !unused || !outcomes)
        abort();
    size_t piece = 0;
    uint64_t filled = IO_BYTES;
    for (size_t i = 0; i < count; i++)
        for (uint64_t at = 0; at < sizes[i]; at += IO_BYTES) {
            uint64_t size = sizes[i] - at < IO_BYTES ? sizes[i] - at : IO_BYTES;
            if (filled + size > IO_BYTES) {
                owners[jobs_count] = (uint64_t)(uintptr_t)&writing;
                jobs[jobs_count++] = (struct write_job){offset, piece, 0};
                filled = 0;
            }
            writing.ranges[piece++] = (struct range){addresses[i] + at, size};
            jobs[jobs_count - 1].count++;
            filled += size;
            offset += size;
        }
    struct batch plan = {.jobs = jobs, .part_addresses = owners, .part_sizes = unused,
                         .parts_per_page = 1, .deadline_ns = INT64_MAX, .run = write_one,
                         .count = jobs_count};
    int busy = batch_run(&plan, sizeof *jobs, 0, threads, outcomes);
    free(writing.ranges), free(jobs), free(owners), free(unused), free(outcomes);
    return busy ? busy : -writing.failed;
}

void agm_zero(uint64_t address, size_t size) { memset((void *)(uintptr_t)address, 0, size); }

/* Makes the pages of a mapping present and writable, huge ones where the system allows them.
 * 0 or a negative errno. */
int agm_populate(uint64_t address, size_t size) {
    void *start = (void *)(uintptr_t)address;
    madvise(start, size, MADV_HUGEPAGE); /* refused for shared memory on most systems */
    return madvise(start, size, MADV_POPULATE_WRITE) == 0 ? 0 : -errno;
}
