/* XXH3 by function pointers: xxhash's own code, chosen for this CPU by its own dispatcher. */
#include "datapath.h"

#include <string.h>

static struct {
    void *(*create)(void);
    int (*release)(void *);
    int (*reset)(void *);
    int (*update)(void *, const void *, size_t);
    hash128 (*digest)(const void *);
    uint64_t (*once64)(const void *, size_t);
    hash128 (*once128)(const void *, size_t);
} xxh;

/* Addresses of XXH3_createState, XXH3_freeState, XXH3_128bits_reset, _update, _digest,
 * XXH3_64bits, XXH3_128bits, in this order. */
void agm_set_hash(void *const functions[7]) { memcpy(&xxh, functions, sizeof xxh); }

static void big_endian(uint64_t value, uint8_t out[8]) {
    value = __builtin_bswap64(value);
    memcpy(out, &value, 8);
}

static void canonical(hash128 hash, uint8_t out[16]) {
    big_endian(hash.high, out);
    big_endian(hash.low, out + 8);
}

void *hash_state(void) { return xxh.create(); }
void hash_state_free(void *state) { xxh.release(state); }
void hash_start(void *state) { xxh.reset(state); }
void hash_update(void *state, const void *data, size_t size) { xxh.update(state, data, size); }
void hash_finish(void *state, uint8_t out[16]) { canonical(xxh.digest(state), out); }
void hash_once(const void *data, size_t size, uint8_t out[16]) {
    canonical(xxh.once128(data, size), out);
}
void hash_check(const void *data, size_t size, uint8_t out[8]) {
    big_endian(xxh.once64(data, size), out);
}
