/* residual datanet publish DIR: registers this version on the chain (--rpc) and brings list and
 * texts to a server. Each step looks first, so a repeat goes on where the last one stopped; what is
 * on the chain is noted in datanet.json, and the next change is of the next version. */
#include "chain_client/cli/datanet_dir.h"
#include "chain_client/cli/datanet_send.h"
#include "chain_client/cli/place.h"
#include "chain_client/cli/registry.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"
#include "server/datanet/value_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define COMPARE_TURN_MS 100
#define COMPARE_TURNS   50

struct datanet_publish {
    const struct cli *c;
    struct node node;
    struct deployment d;
    bool on_chain, bound; /* --rpc, --deployment */
    struct secp *secp;
    struct secp_key owner;
    struct sign_source source;
    struct datanet *datanet;
    uint32_t tx_count, texts;
    bool value_sent;
    const char *hint;
};

static enum status open_folder(struct datanet_publish *p, struct errtext *err)
{
    const char *dir = p->c->operand[0];
    enum status st = datanet_open(&p->datanet, dir, NULL, err);
    if (!st)
        st = sign_source_load_list(&p->source, dir, err);
    return st;
}

static enum status open_place(struct datanet_publish *p, struct errtext *err)
{
    struct manifest *m = &p->source.m;
    const char *given = p->c->value[OPT_DATANET_ID];
    p->on_chain = cli_has(p->c, OPT_RPC);
    p->bound = cli_has(p->c, OPT_DEPLOYMENT);
    if (p->on_chain && !p->bound)
        return err_set(err, STATUS_INVALID, "--rpc needs --deployment FILE too");
    enum status st = STATUS_OK;
    if (p->on_chain) {
        st = node_open(&p->node, p->c, err);
        p->d = p->node.d;
        p->hint = st ? node_hint(st) : NULL;
    } else if (p->bound) {
        st = place_deployment(&p->d, p->c, err);
    }
    if (st || !p->bound)
        return st;
    m->chain_id = p->d.chain_id;
    memcpy(m->registry, p->d.registry, 20);
    registry_datanet_id(m->datanet_id, &p->d, m->owner, p->source.salt);
    return !given || hex_decode(m->datanet_id, 32, given)
               ? STATUS_OK
               : err_set(err, STATUS_INVALID, "--datanet-id: expected 64 hex digits");
}

static enum status load_owner(struct datanet_publish *p, struct errtext *err)
{
    char have[ADDR_TEXT_BYTES], want[ADDR_TEXT_BYTES];
    const struct cli *c = p->c;
    if (!cli_has(c, OPT_OWNER_KEY_FILE))
        return err_set(err, STATUS_INVALID,
                       "--rpc needs --owner-key-file FILE: the datanet's owner registers it");
    enum status st = secp_create(&p->secp, err);
    if (!st)
        st = keystore_load(p->secp, &p->owner, c->value[OPT_OWNER_KEY_FILE],
                           c->value[OPT_OWNER_PASSPHRASE_FILE], err);
    if (st || memcmp(p->owner.address, p->source.m.owner, 20) == 0)
        return st;
    addr_format(have, p->owner.address);
    addr_format(want, p->source.m.owner);
    return err_set(err, STATUS_DENIED, "--owner-key-file is of %s; the datanet's owner is %s", have,
                   want);
}

/* datanet.json says which version is on the chain, and under which id. */
static enum status note_published(const struct datanet_publish *p, struct errtext *err)
{
    struct datanet_dir dir;
    char id[67] = "0x";
    enum status st = datanet_dir_load(&dir, p->c->operand[0], err);
    if (st)
        return st;
    hex_encode(id + 2, p->source.m.datanet_id, 32);
    json_object_set_new(dir.json, "datanetId", json_string(id));
    json_object_set_new(dir.json, "published", json_integer((json_int_t)dir.version));
    st = datanet_dir_save(&dir, err);
    datanet_dir_fini(&dir);
    return st;
}

static enum status register_version(struct datanet_publish *p, struct errtext *err)
{
    static const uint8_t none[32];
    if (!p->on_chain)
        return STATUS_OK;
    if (memcmp(p->source.tokenizer_digest, none, 32) == 0)
        return err_set(err, STATUS_INVALID,
                       "%s has no tokenizerDigest: residual datanet build %s --model BASE first",
                       p->source.datanet_path, p->c->operand[0]);
    enum status st = load_owner(p, err);
    struct registry_job j = {.node = &p->node, .cli = p->c, .secp = p->secp, .owner = &p->owner};
    if (!st)
        st = registry_datanet(&j, &p->source, err);
    p->tx_count = j.tx_count;
    if (!st)
        st = note_published(p, err);
    p->hint = st == STATUS_IO || st == STATUS_TIMEOUT
                  ? "Nothing was uploaded. Run the command again: it goes on where it stopped."
                  : NULL;
    return st;
}

static void put_copies(const struct datanet_publish *p, const json_t *answer)
{
    size_t i;
    const json_t *doc;
    json_array_foreach(json_object_get(answer, "data"), i, doc)
    {
        const json_t *of = json_object_get(doc, "copy_of");
        if (of)
            cli_note(p->c,
                     "warning: document %" JSON_INTEGER_FORMAT ": %" JSON_INTEGER_FORMAT
                     " %% of it stand in %s of %s, which was here before",
                     json_integer_value(json_object_get(doc, "docId")),
                     json_integer_value(json_object_get(of, "ppm")) / 10000,
                     json_string_value(json_object_get(of, "digest")),
                     json_string_value(json_object_get(of, "owner")));
    }
}

/* Texts that somebody else had here before: the server compares while this waits a while. */
static void tell_copies(const struct datanet_publish *p, struct http *http)
{
    char url[128], hex[65];
    bool waits = true;
    hex_encode(hex, datanet_head(p->datanet)->document_root, 32);
    snprintf(url, sizeof(url), "/v1/datanets/0x%s", hex);
    for (int i = 0; waits && i < COMPARE_TURNS; i++) {
        json_t *answer = NULL;
        waits = http_call(http, "GET", url, NULL, &answer, NULL) == STATUS_OK &&
                json_integer_value(json_object_get(answer, "comparing")) > 0;
        if (!waits)
            put_copies(p, answer);
        else
            clock_sleep_ms(COMPARE_TURN_MS);
        json_decref(answer);
    }
    if (waits)
        cli_note(p->c, "the server still compares the texts with earlier ones: residual datanet "
                       "show --server tells what it found");
}

/* value.json, where the folder has one of these documents. */
static enum status bring_value(struct datanet_publish *p, struct http *http, struct errtext *err)
{
    char path[PATH_MAX], url[128], hex[65], *text;
    struct value_report *v;
    struct errtext why = ERRTEXT_INIT;
    json_t *answer = NULL;
    size_t len;
    snprintf(path, sizeof(path), "%.*s/" VALUE_FILE, PATH_MAX - 32, p->c->operand[0]);
    if (!file_exists(path))
        return STATUS_OK;
    enum status st = file_read(path, VALUE_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    if (value_report_parse(&v, text, len, p->datanet, &why)) {
        cli_note(p->c, "%s is not sent: %s", path, why.text);
        mem_free(text);
        return STATUS_OK;
    }
    value_report_free(v);
    hex_encode(hex, datanet_head(p->datanet)->document_root, 32);
    snprintf(url, sizeof(url), "/v1/datanets/0x%s/value", hex);
    struct http_body body = {.text = text, .len = len};
    st = http_call(http, "PUT", url, &body, &answer, err);
    p->value_sent = !st;
    json_decref(answer);
    mem_free(text);
    return st;
}

static enum status bring(struct datanet_publish *p, struct errtext *err)
{
    struct http *http = NULL;
    struct datanet_parcel parcel = {.datanet = p->datanet,
                                    .list = p->source.datanet,
                                    .id = p->bound ? p->source.m.datanet_id : NULL};
    enum status st =
        http_open(&http, p->c->value[OPT_SERVER], p->c->value[OPT_API_KEY_FILE], "server", err);
    if (!st)
        st = datanet_send(http, &parcel, &p->texts, err);
    if (!st)
        st = bring_value(p, http, err);
    if (!st)
        tell_copies(p, http);
    p->hint = st ? http_hint(st) : NULL;
    http_close(http);
    return st;
}

static int print_published(const struct datanet_publish *p)
{
    struct buf out;
    const struct datanet_head *h = datanet_head(p->datanet);
    buf_init(&out, 4096);
    if (cli_has(p->c, OPT_JSON)) {
        buf_puts(&out, "{\"ok\":true,");
        buf_put_json_hex(&out, "document_root", h->document_root, 32);
        buf_putc(&out, ',');
        if (p->bound) {
            buf_put_json_hex(&out, "datanet", p->source.m.datanet_id, 32);
            buf_putc(&out, ',');
        }
        buf_printf(&out,
                   "\"version\":%" PRIu64 ",\"documents\":%u,\"texts_sent\":%u,\"registered\":%s,"
                   "\"value_sent\":%s,\"transactions\":%u}",
                   h->version, h->n, p->texts, p->on_chain ? "true" : "false",
                   p->value_sent ? "true" : "false", p->tx_count);
    } else {
        buf_printf(&out, "published %s version %" PRIu64 ": %u documents, root ", h->name,
                   h->version, h->n);
        buf_put_hex(&out, h->document_root, 32);
        if (p->on_chain) {
            buf_puts(&out, "\ndatanet ");
            buf_put_hex(&out, p->source.m.datanet_id, 32);
            buf_printf(&out, " on chain %" PRIu64 " (%u transactions)", p->d.chain_id, p->tx_count);
        }
        buf_printf(&out, "\n%u texts sent; the server has them all%s", p->texts,
                   p->value_sent ? ", and what they are worth" : "");
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

int verb_datanet_publish(struct cli *c)
{
    struct datanet_publish p = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    enum status st = open_folder(&p, &err);
    if (!st)
        st = open_place(&p, &err);
    if (!st && p.bound)
        st = sign_need_all(json_object_get(p.source.datanet, "documents"), p.source.datanet_path,
                           c->operand[0], &err);
    if (!st)
        st = register_version(&p, &err);
    if (!st)
        st = bring(&p, &err);
    int code = st ? cli_fail(c, st, &err, p.hint) : print_published(&p);
    datanet_release(p.datanet);
    sign_source_fini(&p.source);
    secp_key_fini(&p.owner);
    secp_destroy(p.secp);
    node_close(&p.node);
    return code;
}
