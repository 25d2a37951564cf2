/* The jobs: store a page, load or check one, seal one. */
#define _GNU_SOURCE
#include "datapath.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct cursor parts_of(struct batch *batch, size_t index) {
    size_t first = index * batch->parts_per_page;
    return (struct cursor){batch->part_addresses + first, batch->part_sizes + first,
                           batch->parts_per_page, 0, 0};
}

static uint64_t sum_of(struct cursor cursor) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < cursor.parts; i++)
        sum += cursor.size[i];
    return sum;
}

/* ---- store */

static uint8_t store_one(struct batch *batch, size_t index) {
    const struct store_job *job = (const struct store_job *)batch->jobs + index;
    struct cursor cursor = parts_of(batch, index);
    uint8_t *slot = (uint8_t *)(uintptr_t)job->record, *at = slot + HEADER_BYTES, *source;
    struct record_header header;
    struct timespec now;
    uint8_t checksum[16];
    size_t size;
    void *hash = hash_state();
    if (hash == NULL)
        return LATE;
    hash_start(hash);
    while ((size = cursor_next(&cursor, PIECE_BYTES, &source)) > 0) {
        hash_update(hash, source, size);
        copy_bytes(at, source, size);
        at += size;
    }
    hash_finish(hash, checksum);
    hash_state_free(hash);
    clock_gettime(CLOCK_REALTIME, &now);
    header_fill(&header, job->key, (uint64_t)(at - slot) - HEADER_BYTES,
                now.tv_sec * 1000000000ull + now.tv_nsec, checksum);
    slot_commit(slot, &header);
    return MOVED;
}

int agm_store(const struct store_job *jobs, size_t count, uint64_t *addresses, uint64_t *sizes,
              uint32_t parts_per_page, int threads, int64_t deadline_ns, uint8_t *outcomes) {
    struct batch plan = {.jobs = jobs, .part_addresses = addresses, .part_sizes = sizes,
                         .parts_per_page = parts_per_page, .deadline_ns = deadline_ns,
                         .run = store_one, .count = count};
    return batch_run(&plan, sizeof *jobs, 0, threads, outcomes);
}

/* ---- load */

struct loading {
    struct batch *batch;
    const struct load_job *job;
    struct record_header header;
    struct cursor cursor;
    void *hash; /* of the payload as it lies there; opening to a slot: of the plain one */
    struct gcm *gcm;
};

static int wants_parts(const struct loading *load) { return load->cursor.parts > 0; }

/* Checks the header and gets ready for the payload. Anything but MOVED ends the job. */
static uint8_t load_begin(struct loading *load) {
    const struct load_job *job = load->job;
    const struct record_header *header = &load->header;
    if (!header_is_good(header) ||
        (job->has_key && memcmp(header->key, job->key, KEY_BYTES) != 0) ||
        (job->payload_bytes && header->payload_bytes != job->payload_bytes) ||
        (wants_parts(load) && sum_of(load->cursor) != header->payload_bytes))
        return CORRUPT;
    if (header->flags & FLAG_SEALED && wants_parts(load)) {
        if (!job->has_secret)
            return SEALED;
        load->gcm = gcm_begin(0, job->secret, header);
        if (load->gcm == NULL)
            return UNREADABLE;
    }
    load->hash = hash_state();
    if (load->hash == NULL)
        return LATE;
    hash_start(load->hash);
    return MOVED;
}

/* Takes the next bytes of the payload. 0 when the caller has given up, or libcrypto fails. */
static int load_bytes(struct loading *load, const uint8_t *source, size_t size) {
    int verifies = !(load->batch->flags & UNVERIFIED);
    while (size > 0) {
        size_t piece = size < PIECE_BYTES ? size : PIECE_BYTES, done = 0, part;
        uint8_t *target;
        if (load->gcm == NULL && verifies)
            hash_update(load->hash, source, piece);
        if (wants_parts(load)) {
            if (!batch_enter(load->batch))
                return 0;
            while (done < piece &&
                   (part = cursor_next(&load->cursor, piece - done, &target)) > 0) {
                if (load->gcm == NULL)
                    copy_bytes(target, source + done, part);
                else if (!gcm_update(load->gcm, source + done, target, part))
                    break;
                else if (load->job->slot)
                    hash_update(load->hash, target, part);
                done += part;
            }
            batch_leave(load->batch);
            if (done < piece)
                return 0;
        }
        source += piece, size -= piece;
    }
    return 1;
}

static uint8_t load_end(struct loading *load) {
    uint8_t checksum[16];
    hash_finish(load->hash, checksum);
    if (load->gcm != NULL ? !gcm_finish(load->gcm, NULL)
                          : !(load->batch->flags & UNVERIFIED) &&
                                memcmp(checksum, load->header.checksum, 16) != 0)
        return CORRUPT;
    copy_fence();
    if (load->job->slot) {
        struct record_header plain;
        header_fill(&plain, load->header.key, load->header.payload_bytes, load->header.sequence,
                    load->gcm != NULL ? checksum : load->header.checksum);
        if (!batch_enter(load->batch))
            return LATE;
        slot_commit((uint8_t *)(uintptr_t)load->job->slot, &plain);
        batch_leave(load->batch);
    }
    return MOVED;
}

static uint8_t load_from_memory(struct loading *load) {
    const uint8_t *record = (const uint8_t *)(uintptr_t)load->job->record;
    if (load->job->capacity < HEADER_BYTES)
        return CORRUPT;
    memcpy(&load->header, record, HEADER_BYTES);
    uint8_t outcome = load_begin(load);
    if (outcome != MOVED)
        return outcome;
    if (load->header.payload_bytes > load->job->capacity - HEADER_BYTES)
        return CORRUPT;
    if (!load_bytes(load, record + HEADER_BYTES, load->header.payload_bytes))
        return LATE;
    return load_end(load);
}

/* Tests put a medium that hangs or fails here. */
static ssize_t (*read_at)(int, void *, size_t, off_t) = pread;

void agm_set_read(ssize_t (*function)(int, void *, size_t, off_t)) {
    read_at = function != NULL ? function : pread;
}

/* Reads until `size` bytes are there or the file ends. Negative: errno. */
static int64_t read_fully(int fd, uint8_t *target, size_t size, uint64_t offset) {
    size_t done = 0;
    while (done < size) {
        ssize_t count = read_at(fd, target + done, size - done, (off_t)(offset + done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EINVAL && (fcntl(fd, F_GETFL) & O_DIRECT)) {
            /* Aligned otherwise than this file system wants: through the page cache, then. */
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT);
            continue;
        }
        if (count < 0)
            return errno ? -errno : -EIO;
        done += (size_t)count;
        if (count == 0 || done % ALIGN_BYTES != 0)
            break; /* the end of the file */
    }
    return (int64_t)done;
}

static uint8_t load_from_file(struct loading *load, uint8_t *bounce) {
    const struct load_job *job = load->job;
    uint64_t expected = job->payload_bytes ? HEADER_BYTES + aligned(job->payload_bytes) : IO_BYTES;
    uint64_t at = 0, left = 0;
    uint8_t outcome;
    do {
        size_t wanted = at == 0 ? expected : aligned(left);
        if (wanted > IO_BYTES)
            wanted = IO_BYTES;
        if (batch_late(load->batch))
            return LATE;
        int64_t count = read_fully((int)job->fd, bounce, wanted, job->offset + at);
        if (count < 0)
            return UNREADABLE;
        uint64_t skip = at == 0 ? HEADER_BYTES : 0;
        if (at == 0) {
            if (count < HEADER_BYTES)
                return CORRUPT;
            memcpy(&load->header, bounce, HEADER_BYTES);
            if ((outcome = load_begin(load)) != MOVED)
                return outcome;
            left = load->header.payload_bytes;
        }
        uint64_t payload = (uint64_t)count - skip < left ? (uint64_t)count - skip : left;
        if (payload == 0)
            return CORRUPT; /* the file ends inside of the page */
        if (!load_bytes(load, bounce + skip, payload))
            return LATE;
        left -= payload;
        at += skip + payload;
        if (left > 0 && at % ALIGN_BYTES != 0)
            return CORRUPT;
    } while (left > 0);
    return load_end(load);
}

static uint8_t load_one(struct batch *batch, size_t index) {
    struct loading load = {.batch = batch, .job = (const struct load_job *)batch->jobs + index,
                           .cursor = parts_of(batch, index)};
    uint8_t outcome;
    if (load.job->record != 0) {
        outcome = load_from_memory(&load);
    } else if (load.job->fd < 0) {
        outcome = UNREADABLE;
    } else {
        uint8_t *bounce = bounce_take();
        if (bounce == NULL)
            return UNREADABLE;
        outcome = load_from_file(&load, bounce);
        bounce_give(bounce);
    }
    if (load.hash != NULL)
        hash_state_free(load.hash);
    if (load.gcm != NULL)
        gcm_free(load.gcm);
    return outcome;
}

int agm_load(const struct load_job *jobs, size_t count, uint64_t *addresses, uint64_t *sizes,
             uint32_t parts_per_page, uint32_t flags, int threads, int64_t deadline_ns,
             uint8_t *outcomes) {
    struct batch plan = {.jobs = jobs, .part_addresses = addresses, .part_sizes = sizes,
                         .parts_per_page = parts_per_page, .flags = flags,
                         .deadline_ns = deadline_ns, .run = load_one, .count = count};
    int uses_files = 0;
    for (size_t i = 0; i < count; i++)
        uses_files |= jobs[i].record == 0;
    return batch_run(&plan, sizeof *jobs, uses_files, threads, outcomes);
}

/* ---- seal */

static uint8_t seal_one(struct batch *batch, size_t index) {
    const struct seal_job *job = (const struct seal_job *)batch->jobs + index;
    const uint8_t *source = (const uint8_t *)(uintptr_t)job->record;
    uint8_t *target = (uint8_t *)(uintptr_t)job->target, checksum[16], written[16];
    struct record_header header;
    memcpy(&header, source, HEADER_BYTES);
    if (!header_is_good(&header) || header.flags & FLAG_SEALED)
        return CORRUPT;
    memcpy(header.key_id, job->key_id, sizeof header.key_id);
    memcpy(header.nonce, job->nonce, sizeof header.nonce);
    struct gcm *gcm = gcm_begin(1, job->secret, &header);
    void *plain = hash_state(), *sealed = hash_state();
    uint8_t outcome = gcm && plain && sealed ? MOVED : UNREADABLE;
    if (outcome == MOVED) {
        hash_start(plain), hash_start(sealed);
        for (uint64_t at = 0; at < header.payload_bytes && outcome == MOVED; at += PIECE_BYTES) {
            uint64_t left = header.payload_bytes - at, size = left < PIECE_BYTES ? left : PIECE_BYTES;
            uint8_t *to = target + HEADER_BYTES + at;
            hash_update(plain, source + HEADER_BYTES + at, size);
            if (!gcm_update(gcm, source + HEADER_BYTES + at, to, size))
                outcome = UNREADABLE;
            hash_update(sealed, to, size);
        }
        hash_finish(plain, checksum), hash_finish(sealed, written);
        if (outcome == MOVED && memcmp(checksum, header.checksum, 16) != 0)
            outcome = CORRUPT;
        if (outcome == MOVED && !gcm_finish(gcm, header.tag))
            outcome = UNREADABLE;
    }
    if (outcome == MOVED) {
        uint64_t end = HEADER_BYTES + header.payload_bytes;
        memset(target + end, 0, HEADER_BYTES + aligned(header.payload_bytes) - end);
        memcpy(header.checksum, written, 16);
        header.flags |= FLAG_SEALED;
        header_seal_check(&header);
        memcpy(target, &header, HEADER_BYTES);
    }
    if (gcm)
        gcm_free(gcm);
    if (plain)
        hash_state_free(plain);
    if (sealed)
        hash_state_free(sealed);
    return outcome;
}

int agm_seal(const struct seal_job *jobs, size_t count, int threads, uint8_t *outcomes) {
    struct batch plan = {.jobs = jobs, .deadline_ns = INT64_MAX, .run = seal_one, .count = count};
    return batch_run(&plan, sizeof *jobs, 0, threads, outcomes);
}
