/* Spreads the jobs of one call over threads, and gives up on them at the deadline.
 *
 * A thread that hangs in a read of a failing disk cannot be ended. It reads into memory of its own,
 * and asks (`batch_enter`) before it writes to the caller's: once the call has returned, nothing
 * is written there any more. The threads live as long as their batch: starting one takes some 20
 * microseconds, a batch takes milliseconds, and no state is left over a fork. */
#define _GNU_SOURCE
#include "datapath.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10)
#define THREADS_MAX 64 /* of one batch */
#define STUCK_MAX 64   /* threads of batches that were given up */
#define BOUNCES_KEPT 32
#define HUGE_BYTES (2u << 20)

struct sync {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t next;
    int references; /* the caller and each thread */
    int running;
    int writing;
    int given_up;
    int fds_count;
    int *fds; /* duplicates: the caller closes its own */
};

static pthread_mutex_t bounces_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *bounces[BOUNCES_KEPT];
static int bounces_count;
static int threads_stuck;

int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

uint8_t *bounce_take(void) {
    uint8_t *bounce = NULL;
    pthread_mutex_lock(&bounces_lock);
    if (bounces_count > 0)
        bounce = bounces[--bounces_count];
    pthread_mutex_unlock(&bounces_lock);
    if (bounce != NULL)
        return bounce;
    /* In huge pages: a request to the disk has so many segments, and 4 KiB each make it small. */
    uint8_t *space = mmap(NULL, IO_BYTES + HUGE_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (space == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)space & (HUGE_BYTES - 1);
    bounce = space + before;
    if (before > 0)
        munmap(space, before);
    munmap(bounce + IO_BYTES, HUGE_BYTES - before);
    agm_populate((uint64_t)(uintptr_t)bounce, IO_BYTES);
    return bounce;
}

void bounce_give(uint8_t *bounce) {
    pthread_mutex_lock(&bounces_lock);
    if (bounces_count < BOUNCES_KEPT) {
        bounces[bounces_count++] = bounce;
        bounce = NULL;
    }
    pthread_mutex_unlock(&bounces_lock);
    if (bounce != NULL)
        munmap(bounce, IO_BYTES);
}

int batch_late(struct batch *batch) {
    struct sync *sync = batch->sync;
    return __atomic_load_n(&sync->given_up, __ATOMIC_RELAXED) ||
           monotonic_ns() >= batch->deadline_ns;
}

int batch_enter(struct batch *batch) {
    struct sync *sync = batch->sync;
    pthread_mutex_lock(&sync->lock);
    int allowed = !sync->given_up;
    sync->writing += allowed;
    pthread_mutex_unlock(&sync->lock);
    return allowed;
}

void batch_leave(struct batch *batch) {
    struct sync *sync = batch->sync;
    pthread_mutex_lock(&sync->lock);
    if (--sync->writing == 0 && sync->given_up)
        pthread_cond_broadcast(&sync->changed);
    pthread_mutex_unlock(&sync->lock);
}

static void batch_free(struct batch *batch) {
    struct sync *sync = batch->sync;
    for (int i = 0; i < sync->fds_count; i++)
        close(sync->fds[i]);
    pthread_cond_destroy(&sync->changed);
    pthread_mutex_destroy(&sync->lock);
    free(sync->fds);
    free(sync);
    /* Secrets are among the jobs. */
    explicit_bzero((void *)batch->jobs, batch->jobs_bytes);
    free((void *)batch->jobs);
    free(batch->part_addresses);
    free(batch->part_sizes);
    free(batch->order);
    free(batch->outcomes);
    free(batch);
}

static void batch_release(struct batch *batch, int is_thread) {
    struct sync *sync = batch->sync;
    pthread_mutex_lock(&sync->lock);
    int left = --sync->references;
    if (is_thread) {
        sync->running--;
        if (sync->given_up)
            __atomic_sub_fetch(&threads_stuck, 1, __ATOMIC_RELAXED);
        pthread_cond_broadcast(&sync->changed);
    }
    pthread_mutex_unlock(&sync->lock);
    if (left == 0)
        batch_free(batch);
}

static void work(struct batch *batch) {
    struct sync *sync = batch->sync;
    for (;;) {
        size_t at = __atomic_fetch_add(&sync->next, 1, __ATOMIC_RELAXED);
        if (at >= batch->count || batch_late(batch))
            return;
        size_t index = batch->order[at];
        uint8_t outcome = batch->run(batch, index);
        __atomic_store_n(&batch->outcomes[index], outcome, __ATOMIC_RELEASE);
    }
}

static void *thread_main(void *argument) {
    work(argument);
    batch_release(argument, 1);
    return NULL;
}

static int start_thread(struct batch *batch) {
    struct sync *sync = batch->sync;
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_mutex_lock(&sync->lock);
    sync->references++;
    sync->running++;
    pthread_mutex_unlock(&sync->lock);
    int failed = pthread_create(&thread, &attributes, thread_main, batch);
    pthread_attr_destroy(&attributes);
    if (failed) {
        pthread_mutex_lock(&sync->lock);
        sync->references--;
        sync->running--;
        pthread_mutex_unlock(&sync->lock);
    }
    return !failed;
}

static void *copied(const void *source, size_t size) {
    void *copy = malloc(size ? size : 1);
    if (copy != NULL && size)
        memcpy(copy, source, size);
    return copy;
}

static struct batch *batch_new(const struct batch *plan, size_t job_bytes) {
    struct batch *batch = calloc(1, sizeof *batch);
    struct sync *sync = calloc(1, sizeof *sync);
    size_t parts = plan->count * plan->parts_per_page * sizeof(uint64_t);
    pthread_condattr_t clock;
    if (batch == NULL || sync == NULL)
        abort();
    *batch = *plan;
    batch->jobs_bytes = plan->count * job_bytes;
    batch->jobs = copied(plan->jobs, batch->jobs_bytes);
    batch->part_addresses = copied(plan->part_addresses, parts);
    batch->part_sizes = copied(plan->part_sizes, parts);
    batch->order = malloc((plan->count ? plan->count : 1) * sizeof(size_t));
    batch->outcomes = calloc(plan->count ? plan->count : 1, 1);
    batch->sync = sync;
    if (!batch->jobs || !batch->part_addresses || !batch->part_sizes || !batch->order ||
        !batch->outcomes)
        abort();
    for (size_t i = 0; i < plan->count; i++)
        batch->order[i] = i;
    pthread_mutex_init(&sync->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&sync->changed, &clock);
    pthread_condattr_destroy(&clock);
    sync->references = 1;
    return batch;
}

static int by_place(const void *left, const void *right, void *jobs) {
    const struct load_job *a = (struct load_job *)jobs + *(const size_t *)left;
    const struct load_job *b = (struct load_job *)jobs + *(const size_t *)right;
    if (a->fd != b->fd)
        return a->fd < b->fd ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Duplicates the descriptors of load jobs and orders them as they lie. 0 when out of descriptors. */
static int take_files(struct batch *batch) {
    struct load_job *jobs = (struct load_job *)batch->jobs;
    struct sync *sync = batch->sync;
    qsort_r(batch->order, batch->count, sizeof(size_t), by_place, jobs);
    sync->fds = malloc((batch->count ? batch->count : 1) * sizeof(int));
    if (sync->fds == NULL)
        abort();
    int64_t last = -1;
    int duplicate = -1;
    for (size_t at = 0; at < batch->count; at++) {
        struct load_job *job = &jobs[batch->order[at]];
        if (job->record != 0)
            continue;
        if (job->fd != last) {
            last = job->fd;
            duplicate = dup((int)job->fd);
            if (duplicate < 0 && errno == EMFILE)
                return 0;
            if (duplicate >= 0)
                sync->fds[sync->fds_count++] = duplicate;
        }
        job->fd = duplicate;
    }
    return 1;
}

/* Memory moves on while a job has begun to write it: only reads of files are given up. */
static void wait_until_done(struct batch *batch, int may_give_up) {
    struct sync *sync = batch->sync;
    struct timespec until = {batch->deadline_ns / 1000000000ll, batch->deadline_ns % 1000000000ll};
    pthread_mutex_lock(&sync->lock);
    while (sync->running > 0 && !may_give_up)
        pthread_cond_wait(&sync->changed, &sync->lock);
    while (sync->running > 0 && !sync->given_up)
        if (pthread_cond_timedwait(&sync->changed, &sync->lock, &until) == ETIMEDOUT &&
            sync->running > 0) {
            sync->given_up = 1;
            __atomic_add_fetch(&threads_stuck, sync->running, __ATOMIC_RELAXED);
        }
    while (sync->writing > 0)
        pthread_cond_wait(&sync->changed, &sync->lock);
    pthread_mutex_unlock(&sync->lock);
}

/* Runs a plan's jobs. Jobs that only move memory run on the calling thread as well; one that reads
 * files waits for threads that it can leave behind. 0, or a negative errno when none was begun. */
int batch_run(const struct batch *plan, size_t job_bytes, int uses_files, int threads,
              uint8_t *outcomes) {
    memset(outcomes, LATE, plan->count);
    if (__atomic_load_n(&threads_stuck, __ATOMIC_RELAXED) >= STUCK_MAX)
        return -EBUSY;
    struct batch *batch = batch_new(plan, job_bytes);
    if (uses_files && !take_files(batch)) {
        batch_release(batch, 0);
        return -EMFILE;
    }
    if (threads > THREADS_MAX)
        threads = THREADS_MAX;
    if ((size_t)threads > plan->count)
        threads = (int)plan->count;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* threads inherit it: signals are Python's */
    int started = 0;
    for (int i = uses_files ? 0 : 1; i < threads; i++)
        started += start_thread(batch);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!uses_files || started == 0)
        work(batch);
    wait_until_done(batch, uses_files);
    for (size_t i = 0; i < plan->count; i++)
        outcomes[i] = __atomic_load_n(&batch->outcomes[i], __ATOMIC_ACQUIRE);
    batch_release(batch, 0);
    return 0;
}
