/* The data path in C: what moves and checks page bytes, a batch per call, without the interpreter
 * lock and on threads of its own. `agentmem/native/twin.py` does the same in Python; the contract
 * tests hold the two against each other. The record format is that of `agentmem/pages/record.py`. */
#ifndef AGENTMEM_DATAPATH_H
#define AGENTMEM_DATAPATH_H

#include <stddef.h>
#include <stdint.h>

#define HEADER_BYTES 4096u
#define ALIGN_BYTES 4096u
#define KEY_BYTES 48u
#define SECRET_BYTES 32u
#define FLAG_SEALED 1u
#define FORMAT_VERSION 2u
#define PAYLOAD_BYTES_MAX (1ull << 30)
/* Hashed and then copied while it is still in the second-level cache. */
#define PIECE_BYTES (128u << 10)
/* One read or write of a file. */
#define IO_BYTES (4u << 20)

enum outcome { LATE = 0, MOVED = 1, CORRUPT = 2, UNREADABLE = 3, SEALED = 4 };
enum load_flags { UNVERIFIED = 1 };

struct __attribute__((packed)) record_header {
    uint8_t magic[8];
    uint16_t version;
    uint16_t flags;
    uint32_t header_bytes;
    uint64_t payload_bytes;
    uint8_t key[KEY_BYTES];
    uint64_t sequence;
    uint8_t checksum[16];
    uint8_t key_id[16];
    uint8_t nonce[12];
    uint8_t tag[16];
    uint8_t reserved[HEADER_BYTES - 8 - 140];
    uint8_t check[8];
};

/* Copy a page's parts into the slot at `record`, and commit it. */
struct store_job {
    uint64_t record;
    uint8_t key[KEY_BYTES];
};

/* Move the page of `key` into its parts. The source is a record in memory (`record`) or, where that
 * is 0, in file `fd` at `offset`. `payload_bytes` 0: any length, and no parts: only check it.
 * `slot` not 0: the parts are the payload of that slot; commit it as a plain record. */
struct load_job {
    uint64_t record;
    int64_t fd;
    uint64_t offset;
    uint64_t payload_bytes;
    uint64_t capacity; /* bytes that may be read at `record`; unused for files */
    uint64_t slot;
    uint64_t has_key;
    uint64_t has_secret;
    uint8_t key[KEY_BYTES];
    uint8_t secret[SECRET_BYTES];
};

struct seal_job {
    uint64_t record;
    uint64_t target;
    uint8_t key_id[16];
    uint8_t nonce[12];
    uint8_t pad[4];
    uint8_t secret[SECRET_BYTES];
};

/* ---- hash.c: XXH3 of the library that the Python package `xxhash` ships, given at start */
typedef struct {
    uint64_t low, high;
} hash128;
void hash_start(void *state);
void *hash_state(void);
void hash_state_free(void *state);
void hash_update(void *state, const void *data, size_t size);
void hash_finish(void *state, uint8_t out[16]);
void hash_once(const void *data, size_t size, uint8_t out[16]);
void hash_check(const void *data, size_t size, uint8_t out[8]);

/* ---- crypt.c: AES-256-GCM of OpenSSL's libcrypto, given at start */
struct gcm;
struct gcm *gcm_begin(int encrypt, const uint8_t *secret, const struct record_header *header);
int gcm_update(struct gcm *gcm, const uint8_t *source, uint8_t *target, size_t size);
int gcm_finish(struct gcm *gcm, uint8_t tag[16]); /* decrypting: 0 unless the tag is right */
void gcm_free(struct gcm *gcm);

/* ---- record.c */
uint64_t aligned(uint64_t size);
void header_fill(struct record_header *header, const uint8_t *key, uint64_t payload_bytes,
                 uint64_t sequence, const uint8_t checksum[16]);
void header_seal_check(struct record_header *header);
int header_is_good(const struct record_header *header);
void slot_commit(uint8_t *slot, const struct record_header *header);

/* ---- copy.c */
struct cursor { /* over the parts of one page */
    const uint64_t *address;
    const uint64_t *size;
    uint32_t parts;
    uint32_t part;
    uint64_t at;
};
void copy_bytes(uint8_t *target, const uint8_t *source, size_t size);
void copy_fence(void);
size_t cursor_next(struct cursor *cursor, size_t size_max, uint8_t **address);

/* ---- batch.c: spreads jobs over threads */
struct batch;
typedef uint8_t (*job_function)(struct batch *batch, size_t index);
struct batch {
    /* Copies of the caller's arrays: a thread that hangs in a read outlives the call. */
    const void *jobs;
    size_t jobs_bytes;
    uint64_t *part_addresses;
    uint64_t *part_sizes;
    uint32_t parts_per_page;
    uint32_t flags;
    int64_t deadline_ns; /* CLOCK_MONOTONIC */
    job_function run;
    size_t count;
    size_t *order;
    uint8_t *outcomes;
    void *sync;
};
int64_t monotonic_ns(void);
int batch_late(struct batch *batch);
/* Between these two a job may write to its parts; the first answers 0 once the caller gave up. */
int batch_enter(struct batch *batch);
void batch_leave(struct batch *batch);
int batch_run(const struct batch *plan, size_t job_bytes, int uses_files, int threads,
              uint8_t *outcomes);
/* ---- medium.c */
int agm_populate(uint64_t address, size_t size);

uint8_t *bounce_take(void);
void bounce_give(uint8_t *bounce);

#endif
