/* AES-256-GCM by OpenSSL's EVP functions, by pointer: no header of OpenSSL is needed to build. */
#include "datapath.h"

#include <string.h>

enum { CTRL_GET_TAG = 0x10, CTRL_SET_TAG = 0x11 }; /* EVP_CTRL_AEAD_*, openssl/evp.h */

static struct {
    const void *(*aes_256_gcm)(void);
    void *(*create)(void);
    void (*release)(void *);
    int (*begin)(void *, const void *, void *, const uint8_t *, const uint8_t *, int);
    int (*update)(void *, uint8_t *, int *, const uint8_t *, int);
    int (*finish)(void *, uint8_t *, int *);
    int (*control)(void *, int, int, void *);
} evp;

/* Addresses of EVP_aes_256_gcm, EVP_CIPHER_CTX_new, EVP_CIPHER_CTX_free, EVP_CipherInit_ex,
 * EVP_CipherUpdate, EVP_CipherFinal_ex, EVP_CIPHER_CTX_ctrl, in this order. */
void agm_set_cipher(void *const functions[7]) { memcpy(&evp, functions, sizeof evp); }

struct gcm { int encrypt; }; /* never made: an EVP_CIPHER_CTX is passed as one */

struct gcm *gcm_begin(int encrypt, const uint8_t *secret, const struct record_header *header) {
    struct __attribute__((packed)) {
        uint8_t key[KEY_BYTES];
        uint64_t payload_bytes;
        uint64_t sequence;
    } additional = {.payload_bytes = header->payload_bytes, .sequence = header->sequence};
    uint8_t nonce[12];
    int size;
    void *context = evp.create();
    if (context == NULL)
        return NULL;
    memcpy(additional.key, header->key, KEY_BYTES);
    memcpy(nonce, header->nonce, sizeof nonce);
    if (evp.begin(context, evp.aes_256_gcm(), NULL, secret, nonce, encrypt) != 1 ||
        (!encrypt && evp.control(context, CTRL_SET_TAG, 16, (void *)header->tag) != 1) ||
        evp.update(context, NULL, &size, (uint8_t *)&additional, sizeof additional) != 1) {
        evp.release(context);
        return NULL;
    }
    return context;
}

int gcm_update(struct gcm *gcm, const uint8_t *source, uint8_t *target, size_t size) {
    int done;
    return evp.update(gcm, target, &done, source, (int)size) == 1;
}

int gcm_finish(struct gcm *gcm, uint8_t tag[16]) {
    uint8_t none[16];
    int size;
    if (evp.finish(gcm, none, &size) != 1)
        return 0;
    return tag == NULL || evp.control(gcm, CTRL_GET_TAG, 16, tag) == 1;
}

void gcm_free(struct gcm *gcm) { evp.release(gcm); }
