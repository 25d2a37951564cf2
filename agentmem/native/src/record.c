/* The record's header, as in agentmem/pages/record.py. */
#include "datapath.h"

#include <string.h>

static const uint8_t MAGIC[8] = "AGMPAGE1";

_Static_assert(sizeof(struct record_header) == HEADER_BYTES, "the header is one block");

uint64_t aligned(uint64_t size) { return (size + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES; }

void header_fill(struct record_header *header, const uint8_t *key, uint64_t payload_bytes,
                 uint64_t sequence, const uint8_t checksum[16]) {
    memset(header, 0, sizeof *header);
    memcpy(header->magic, MAGIC, sizeof MAGIC);
    header->version = FORMAT_VERSION;
    header->header_bytes = HEADER_BYTES;
    header->payload_bytes = payload_bytes;
    memcpy(header->key, key, KEY_BYTES);
    header->sequence = sequence;
    memcpy(header->checksum, checksum, 16);
    header_seal_check(header);
}

void header_seal_check(struct record_header *header) {
    hash_check(header, offsetof(struct record_header, check), header->check);
}

int header_is_good(const struct record_header *header) {
    uint8_t check[8];
    if (memcmp(header->magic, MAGIC, sizeof MAGIC) != 0)
        return 0;
    hash_check(header, offsetof(struct record_header, check), check);
    return memcmp(check, header->check, sizeof check) == 0 && header->version == FORMAT_VERSION &&
           (header->flags & ~FLAG_SEALED) == 0 && header->header_bytes == HEADER_BYTES &&
           header->payload_bytes > 0 && header->payload_bytes <= PAYLOAD_BYTES_MAX;
}

void slot_commit(uint8_t *slot, const struct record_header *header) {
    uint64_t magic;
    memcpy(&magic, header->magic, 8);
    copy_fence(); /* the payload may have been written past the caches */
    memcpy(slot + 8, (const uint8_t *)header + 8, HEADER_BYTES - 8);
    __atomic_store_n((uint64_t *)slot, magic, __ATOMIC_RELEASE);
}
