/* Copies that leave the target out of the caches: it will be read by a GPU or a disk, not by us. */
#include "datapath.h"

#include <immintrin.h>
#include <string.h>

#define STREAM_BYTES_MIN 4096u

__attribute__((target("avx2"))) static void copy_avx2(uint8_t *target, const uint8_t *source,
                                                      size_t size) {
    size_t head = -(uintptr_t)target & 31;
    memcpy(target, source, head);
    target += head, source += head, size -= head;
    for (; size >= 128; target += 128, source += 128, size -= 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)source);
        __m256i b = _mm256_loadu_si256((const __m256i *)(source + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(source + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(source + 96));
        _mm256_stream_si256((__m256i *)target, a);
        _mm256_stream_si256((__m256i *)(target + 32), b);
        _mm256_stream_si256((__m256i *)(target + 64), c);
        _mm256_stream_si256((__m256i *)(target + 96), d);
    }
    memcpy(target, source, size);
}

void copy_bytes(uint8_t *target, const uint8_t *source, size_t size) {
    if (size >= STREAM_BYTES_MIN && __builtin_cpu_supports("avx2"))
        copy_avx2(target, source, size);
    else
        memcpy(target, source, size);
}

void copy_fence(void) { _mm_sfence(); }

/* The next contiguous bytes, up to `size_max`, of a page's parts; 0 after the last. */
size_t cursor_next(struct cursor *cursor, size_t size_max, uint8_t **address) {
    while (cursor->part < cursor->parts && cursor->at == cursor->size[cursor->part])
        cursor->part++, cursor->at = 0;
    if (cursor->part == cursor->parts)
        return 0;
    size_t size = cursor->size[cursor->part] - cursor->at;
    if (size > size_max)
        size = size_max;
    *address = (uint8_t *)(uintptr_t)cursor->address[cursor->part] + cursor->at;
    cursor->at += size;
    return size;
}
