/* Keys are made on first use and never leave their folder. lane.json is what an operator registers
 * on the ledger. */
#include "server/record/lane.h"
#include "chain_client/canon.h"
#include "chain_client/eth/addr.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum status lane_lock(const char *data_dir, int *fd, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/lock", data_dir);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*fd < 0)
        return err_set(err, STATUS_IO, "data_dir %s: cannot create its lock file", data_dir);
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0)
        return STATUS_OK;
    close(*fd);
    *fd = -1;
    return err_set(err, STATUS_BUSY,
                   "data_dir %s: another residuald uses it; stop it or choose another --data-dir",
                   data_dir);
}

/* Read <dir>/<name> as 32 hex bytes, or make it. */
static enum status key_file(uint8_t key[32], const struct lane *l, const char *name,
                            struct errtext *err)
{
    char path[PATH_MAX], text[65], *data;
    size_t len;
    snprintf(path, sizeof(path), "%s/%s", l->dir, name);
    if (!file_exists(path)) {
        struct secp_key fresh; /* a valid scalar serves every purpose */
        enum status st = secp_key_random(l->secp, &fresh, err);
        if (st)
            return st;
        memcpy(key, fresh.secret, 32);
        secp_key_fini(&fresh);
        hex_encode(text, key, 32);
        st = file_write_atomic(path, text, 64, 0600, err);
        mem_wipe(text, sizeof(text));
        return st;
    }
    enum status st = file_read_secret(path, 256, &data, &len, err);
    if (st)
        return st;
    bool good = hex_decode(key, 32, data);
    mem_wipe(data, len);
    mem_free(data);
    return good ? STATUS_OK : err_set(err, STATUS_CORRUPT, "%s: expected 64 hex digits", path);
}

static enum status write_facts(const struct lane *l, struct errtext *err)
{
    char path[PATH_MAX], text[512], address[ADDR_TEXT_BYTES], ledger[ADDR_TEXT_BYTES];
    addr_format(address, l->key.address);
    addr_format(ledger, l->ledger);
    int n = snprintf(text, sizeof(text),
                     "{\"lane\": %" PRIu32 ", \"address\": \"%s\", \"chainId\": %" PRIu64
                     ", \"ledger\": \"%s\"}\n",
                     l->id, address, l->chain_id, ledger);
    snprintf(path, sizeof(path), "%s/lane.json", l->dir);
    return file_write_atomic(path, text, (size_t)n, 0644, err);
}

static void folder_name(struct lane *l, const char *data_dir)
{
    char ledger[41];
    hex_encode(ledger, l->ledger, 20);
    if (l->bound)
        snprintf(l->dir, sizeof(l->dir), "%s/lanes/%" PRIu64 "-%s-%" PRIu32, data_dir, l->chain_id,
                 ledger, l->id);
    else
        snprintf(l->dir, sizeof(l->dir), "%s/lanes/unbound-%" PRIu32, data_dir, l->id);
}

enum status lane_open(struct lane *out, const struct lane_options *opt, struct errtext *err)
{
    uint8_t secret[32];
    *out = (struct lane){.id = opt->lane ? opt->lane : LANE_FIRST,
                         .chain_id = opt->chain_id,
                         .bound = opt->chain_id != 0};
    memcpy(out->ledger, opt->ledger, 20);
    folder_name(out, opt->data_dir);
    canon_domain(out->domain, out->chain_id, out->ledger);
    enum status st = file_mkdirs(out->dir, 0700, err);
    if (!st)
        st = secp_create(&out->secp, err);
    if (!st)
        st = key_file(secret, out, "lane.key", err);
    if (!st)
        st = secp_key_init(out->secp, &out->key, secret, err);
    mem_wipe(secret, sizeof(secret));
    if (!st)
        st = key_file(out->transport_key, out, "transport.key", err);
    if (!st)
        st = key_file(out->jobs_key, out, "jobs.key", err);
    if (!st)
        st = write_facts(out, err);
    if (st)
        lane_close(out);
    return st;
}

void lane_close(struct lane *l)
{
    secp_key_fini(&l->key);
    secp_destroy(l->secp);
    mem_wipe(l->transport_key, sizeof(l->transport_key));
    mem_wipe(l->jobs_key, sizeof(l->jobs_key));
    l->secp = NULL;
}

bool lane_is_own(const void *lane, uint64_t seq, const void *entry, size_t len)
{
    const struct lane *l = lane;
    union record r;
    return entry_has_tag(l->transport_key, entry, len) &&
           entry_decode(&r, l->id, seq, entry, len, NULL) == STATUS_OK;
}

uint64_t lane_read_final(const void *lane, const char *text)
{
    const struct lane *l = lane;
    return entry_final_parse(text, l->transport_key, l->id);
}
