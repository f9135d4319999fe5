/* Private keys on disk: a raw file (64 hex digits, mode 0600) or a Web3 Secret Storage version 3
 * file with its passphrase in another 0600 file. Secrets are overwritten after use. Thread: any;
 * blocks on disk, and for about a second on a key derivation of the usual cost. */
#ifndef RS_CHAIN_ETH_KEYSTORE_H
#define RS_CHAIN_ETH_KEYSTORE_H

#include "chain_client/eth/secp.h"
#include "server/base/errtext.h"

#include <stddef.h>
#include <stdint.h>

/* keystore_load - the key in path.
 *
 * passphrase_path may be NULL: then path must be a raw file. A raw file needs mode 0600; a version
 * 3 file may be readable, its passphrase may not.
 *
 * Errors  NOT_FOUND, IO
 *         DENIED       file mode, wrong passphrase
 *         INVALID      neither form, not a key
 *         UNSUPPORTED  another version, cipher or key derivation
 *         TOO_LARGE    cost above the limit
 */
MUST_CHECK enum status keystore_load(const struct secp *c, struct secp_key *key, const char *path,
                                     const char *passphrase_path, struct errtext *err);

/* keystore_create - a fresh random key into a new raw file of mode 0600. EXISTS if path is there:
 * a key is never overwritten. */
MUST_CHECK enum status keystore_create(const struct secp *c, struct secp_key *key, const char *path,
                                       struct errtext *err);

/* A version 3 file with the passphrase at hand. Errors as above. */
MUST_CHECK enum status keystore_load_sealed(const struct secp *c, struct secp_key *key,
                                            const char *path, const char *passphrase,
                                            struct errtext *err);

/* keystore_create_sealed - a fresh random key into a new version 3 file of mode 0600 (scrypt, n
 * 262144, r 8, p 1: about a second and 256 MiB). EXISTS if path is there; NO_MEMORY. */
MUST_CHECK enum status keystore_create_sealed(const struct secp *c, struct secp_key *key,
                                              const char *path, const char *passphrase,
                                              struct errtext *err);

/* Decrypt a version 3 text. */
MUST_CHECK enum status keystore_decrypt(uint8_t secret[32], const char *json, size_t json_len,
                                        const char *passphrase, struct errtext *err);

#endif
