/* residual adapter publish: facts -> signatures -> registration -> upload. With a chain the id is
 * computed here, and nothing leaves this machine before the registration is in a block: who saw the
 * files could otherwise register them first. */
#include "chain_client/cli/datanet_send.h"
#include "chain_client/cli/facts.h"
#include "chain_client/cli/place.h"
#include "chain_client/cli/registry.h"
#include "chain_client/cli/upload.h"
#include "chain_client/eth/addr.h"
#include "chain_client/eth/keystore.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/training.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

struct publish {
    struct cli *c;
    struct http *http;
    struct node node;
    bool on_chain; /* --rpc */
    struct deployment d;
    bool bound; /* --deployment */
    struct secp *secp;
    struct secp_key owner;
    struct sign_publisher publisher;
    struct sign_source source;
    bool has_source;
    uint8_t adapter_id[32], model_id[32];
    bool has_id, files_are_up, has_rows;
    struct datanet *datanet; /* where there are rows of it */
    uint32_t tx_count;
    json_t *manifest, *report;
    const char *hint;
};

static enum status check_options(struct publish *p, struct errtext *err)
{
    const struct cli *c = p->c;
    p->on_chain = cli_has(c, OPT_RPC);
    p->bound = cli_has(c, OPT_DEPLOYMENT);
    if (p->on_chain && !p->bound)
        return err_set(err, STATUS_INVALID, "--rpc needs --deployment FILE too");
    if (p->on_chain && !cli_has(c, OPT_MODEL))
        return err_set(err, STATUS_INVALID,
                       "--rpc needs --model DIR too: the adapter's id is registered before its "
                       "files leave this machine, so it is computed here");
    if (cli_has(c, OPT_WITHOUT_OWNER) &&
        (cli_has(c, OPT_MANIFEST) || cli_has(c, OPT_OWNER_KEY_FILE) || p->on_chain))
        return err_set(err, STATUS_INVALID,
                       "--without-owner excludes --manifest, --owner-key-file and --rpc");
    return upload_check_name(c->value[OPT_NAME], err);
}

/* The manifest's file, if there is one: --manifest, or publish.json of the folder. */
static enum status load_source(struct publish *p, struct errtext *err)
{
    char path[PATH_MAX];
    const char *given = p->c->value[OPT_MANIFEST];
    snprintf(path, sizeof(path), "%s/publish.json", p->c->operand[0]);
    if (cli_has(p->c, OPT_WITHOUT_OWNER) || (!given && !file_exists(path))) {
        if (p->on_chain)
            return err_set(err, STATUS_NOT_FOUND,
                           "%s is missing: --rpc registers what it declares (owner, prices, split)",
                           path);
        if (cli_has(p->c, OPT_WITHOUT_OWNER))
            return STATUS_OK;
        return err_set(err, STATUS_INVALID,
                       "%s is missing: without a manifest the adapter has no owner and no prices, "
                       "and its answers pay nobody. Write one (owner, prices, split), name it with "
                       "--manifest, or say --without-owner",
                       path);
    }
    enum status st = sign_source_load(&p->source, given ? given : path, err);
    p->has_source = !st;
    if (!st && p->source.is_signed && p->on_chain)
        st = err_set(err, STATUS_INVALID,
                     "a signed manifest is sent as it is: leave --rpc out, or give the unsigned "
                     "one");
    return st;
}

/* Without a manifest: the datanet in the folder, so that answers are attributed all the same. */
static enum status find_rows(struct publish *p, struct errtext *err)
{
    struct sign_source *s = &p->source;
    if (p->has_source)
        return STATUS_OK;
    snprintf(s->datanet_path, sizeof(s->datanet_path), "%s/" DATANET_FILE, p->c->operand[0]);
    return file_exists(s->datanet_path)
               ? json_doc_load(&s->datanet, s->datanet_path, DATANET_JSON_BYTES, 0, err)
               : STATUS_OK;
}

/* training.json against the datanet beside the manifest, before anything is registered. */
static enum status check_rows(struct publish *p, struct errtext *err)
{
    char dir[PATH_MAX], *text = NULL;
    size_t len;
    struct training *t = NULL;
    enum status found = find_rows(p, err);
    if (found)
        return found;
    snprintf(dir, sizeof(dir), "%s/" TRAINING_FILE, p->c->operand[0]);
    if (!p->source.datanet || !file_exists(dir))
        return STATUS_OK;
    enum status st = file_read(dir, TRAINING_BYTES_MAX, &text, &len, err);
    snprintf(dir, sizeof(dir), "%s", p->source.datanet_path);
    char *slash = strrchr(dir, '/');
    if (!st && (!slash || strcmp(slash, "/" DATANET_FILE) != 0))
        st = err_set(err, STATUS_INVALID, "%s: beside a " TRAINING_FILE " it is called %s", dir,
                     DATANET_FILE);
    if (!st)
        *slash = '\0';
    if (!st)
        st = datanet_open(&p->datanet, dir, NULL, err);
    if (!st)
        st = training_parse(&t, text, len, p->datanet, err);
    if (st)
        err_prefix(err, "%s", p->c->operand[0]);
    training_free(t);
    mem_free(text);
    return st;
}

static enum status load_keys(struct publish *p, struct errtext *err)
{
    const struct cli *c = p->c;
    char have[ADDR_TEXT_BYTES], want[ADDR_TEXT_BYTES];
    if (!p->has_source || p->source.is_signed)
        return STATUS_OK;
    if (!cli_has(c, OPT_OWNER_KEY_FILE) || !cli_has(c, OPT_PUBLISHER_KEY_FILE))
        return err_set(err, STATUS_INVALID,
                       "the manifest must be signed: give --owner-key-file and "
                       "--publisher-key-file");
    enum status st = secp_create(&p->secp, err);
    if (!st)
        st = keystore_load(p->secp, &p->owner, c->value[OPT_OWNER_KEY_FILE],
                           c->value[OPT_OWNER_PASSPHRASE_FILE], err);
    if (!st)
        st = sign_publisher_load(c->value[OPT_PUBLISHER_KEY_FILE], &p->publisher, err);
    if (!st && memcmp(p->owner.address, p->source.m.owner, 20) != 0) {
        addr_format(have, p->owner.address);
        addr_format(want, p->source.m.owner);
        st = err_set(err, STATUS_DENIED, "--owner-key-file is of %s; the manifest's owner is %s",
                     have, want);
    }
    return st;
}

static enum status open_chain(struct publish *p, struct errtext *err)
{
    enum status st = STATUS_OK;
    if (p->on_chain) {
        st = node_open(&p->node, p->c, err);
        p->d = p->node.d;
        p->hint = st ? node_hint(st) : NULL;
    } else if (p->bound) {
        st = place_deployment(&p->d, p->c, err);
    }
    return st;
}

static enum status ask_model(struct publish *p, struct errtext *err)
{
    json_t *version = NULL;
    enum status st =
        http_open(&p->http, p->c->value[OPT_SERVER], p->c->value[OPT_API_KEY_FILE], "server", err);
    if (!st)
        st = http_call(p->http, "GET", "/version", NULL, &version, err);
    const char *id = json_string_value(json_object_get(version, "model_id"));
    if (!st && (!id || !hex_decode(p->model_id, 32, id)))
        st = err_set(err, STATUS_CORRUPT,
                     "the server's /version names no model_id: is it "
                     "residuald?");
    p->hint = st ? http_hint(st) : NULL;
    json_decref(version);
    return st;
}

/* The content id: from the files here with --model, else from the server's dry run. */
static enum status find_id(struct publish *p, struct errtext *err)
{
    struct facts f;
    struct admit_limits any = {.bytes_max = UINT64_MAX, .rank_max = UINT32_MAX}; /* the server's */
    bool base_is_bad;
    json_t *report = NULL;
    if (cli_has(p->c, OPT_MODEL)) {
        enum status st =
            facts_read(&f, p->c->operand[0], p->c->value[OPT_MODEL], &any, &base_is_bad, err);
        memcpy(p->adapter_id, f.id, 32);
        p->has_id = !st;
        return st;
    }
    struct upload_call u = {.name = p->c->value[OPT_NAME],
                            .dir = p->c->operand[0],
                            .replace = cli_has(p->c, OPT_REPLACE),
                            .dry_run = true};
    enum status st = upload_files(p->http, u.name, p->c->operand[0], err);
    if (!st)
        st = upload_publish(p->http, &u, &report, err);
    p->files_are_up = !st;
    const char *id = json_string_value(json_object_get(report, "id"));
    if (!st && (!id || !hex_decode(p->adapter_id, 32, id)))
        st = err_set(err, STATUS_CORRUPT, "the server's report names no adapter id");
    p->has_id = !st;
    p->hint = st ? http_hint(st) : NULL;
    json_decref(report);
    return st;
}

static enum status set_ids(struct publish *p, struct errtext *err)
{
    struct manifest *m = &p->source.m;
    const char *given = p->c->value[OPT_DATANET_ID];
    memcpy(m->adapter_id, p->adapter_id, 32);
    memcpy(m->model_id, p->model_id, 32);
    if (given && !p->source.datanet)
        return err_set(err, STATUS_INVALID,
                       "--datanet-id needs the datanet's documents: datanet.json beside the "
                       "manifest");
    if (p->bound) {
        m->chain_id = p->d.chain_id;
        memcpy(m->registry, p->d.registry, 20);
        if (p->source.datanet)
            registry_datanet_id(m->datanet_id, &p->d, m->owner, p->source.salt);
    }
    if (given && !hex_decode(m->datanet_id, 32, given))
        return err_set(err, STATUS_INVALID, "--datanet-id: expected 64 hex digits");
    return STATUS_OK;
}

static enum status sign_and_register(struct publish *p, struct errtext *err)
{
    uint8_t signature[SECP_SIGNATURE_BYTES];
    struct reward_entry entry[REWARD_ENTRIES_MAX];
    struct manifest_publish mp;
    struct sign_keys keys = {p->secp, &p->owner, &p->publisher};
    if (!p->has_source)
        return STATUS_OK;
    if (p->source.is_signed) {
        p->manifest = json_incref(p->source.publish);
        return STATUS_OK;
    }
    enum status st = set_ids(p, err);
    if (!st)
        st = sign_as_publish(&mp, entry, &p->source.m, err);
    if (!st)
        st = sign_manifest(&p->manifest, &p->source, &keys, signature, err);
    if (!st && p->bound)
        st = sign_need_all(json_object_get(p->manifest, "documents"), p->source.datanet_path,
                           p->c->operand[0], err);
    if (st || !p->on_chain)
        return st;
    struct registry_job j = {.node = &p->node, .cli = p->c, .secp = p->secp, .owner = &p->owner};
    j.consent = p->source.has_consent ? p->source.consent : NULL;
    if (p->source.datanet)
        st = registry_datanet(&j, &p->source, err);
    if (!st)
        st = registry_adapter(&j, &mp, signature, err);
    p->tx_count = j.tx_count;
    p->hint = st == STATUS_IO || st == STATUS_TIMEOUT
                  ? "Nothing was uploaded. Run the command again: it goes on where it stopped."
                  : NULL;
    return st;
}

/* Its rows are of documents that the server has to have. */
static enum status upload_rows(struct publish *p, struct errtext *err)
{
    uint32_t texts;
    struct datanet_parcel parcel = {.datanet = p->datanet,
                                    .list = p->source.datanet,
                                    .documents = json_object_get(p->manifest, "documents"),
                                    .id = p->bound ? p->source.m.datanet_id : NULL};
    enum status st = p->datanet ? datanet_send(p->http, &parcel, &texts, err) : STATUS_OK;
    return st ? st
              : upload_training(p->http, p->c->value[OPT_NAME], p->c->operand[0], &p->has_rows,
                                err);
}

/* A server whose lane is bound takes no datanet that its owners have not signed: then the adapter
 * goes alone. */
static enum status try_rows(struct publish *p, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = p->datanet ? upload_rows(p, &why) : STATUS_OK;
    if (st == STATUS_IO)
        return err_set(err, st, "%s", why.text);
    if (st)
        cli_note(p->c, "its rows are not brought, so nobody's share is measured: %s", why.text);
    return STATUS_OK;
}

static enum status upload(struct publish *p, struct errtext *err)
{
    struct upload_call u = {.name = p->c->value[OPT_NAME],
                            .dir = p->c->operand[0],
                            .manifest = p->manifest,
                            .replace = cli_has(p->c, OPT_REPLACE)};
    enum status st =
        p->files_are_up ? STATUS_OK : upload_files(p->http, u.name, p->c->operand[0], err);
    if (!st)
        st = p->manifest ? upload_rows(p, err) : try_rows(p, err);
    if (!st)
        st = upload_publish(p->http, &u, &p->report, err);
    p->hint = st ? http_hint(st) : NULL;
    uint8_t got[32];
    const char *id = json_string_value(json_object_get(p->report, "id"));
    if (!st && (!id || !hex_decode(got, 32, id) || memcmp(got, p->adapter_id, 32) != 0))
        st = err_set(err, STATUS_CORRUPT,
                     "the server admitted another id (%s) than the files here have; delete it "
                     "there, and check that the base of --model is the server's",
                     id ? id : "none");
    return st;
}

/* A datanet, and a split without a data entry: the owners of its documents will get nothing. */
static bool pays_data(const struct publish *p)
{
    static const uint8_t none[32];
    const struct manifest *m = &p->source.m;
    bool has_documents = p->source.datanet || memcmp(m->datanet_id, none, 32) != 0, pays = false;
    for (uint32_t i = 0; i < m->split_count; i++)
        pays |= m->split[i].role == REWARD_ROLE_DATA;
    return pays || !has_documents;
}

/* What the server read in the Registry's final blocks. */
static void put_terms(struct buf *out, const json_t *report)
{
    const json_t *price = json_object_get(report, "price_per_1000_tokens");
    const char *reason = json_string_value(json_object_get(report, "reason"));
    if (json_is_true(json_object_get(report, "registered")))
        buf_printf(out, "\nthe server charges %s in, %s out (base units per 1000 tokens)",
                   json_string_value(json_object_get(price, "in")),
                   json_string_value(json_object_get(price, "out")));
    else
        buf_printf(out, "\nthe server serves it for nothing now: %s", reason ? reason : "?");
}

static int print_done(struct publish *p)
{
    struct buf out;
    char *text;
    const char *warning = json_string_value(json_object_get(p->report, "warning"));
    buf_init(&out, 16u << 20);
    if (cli_has(p->c, OPT_JSON)) {
        text = json_dumps(p->report, JSON_COMPACT);
        buf_puts(&out, "{\"ok\":true,\"report\":");
        buf_puts(&out, text ? text : "null");
        mem_free(text);
        text = p->manifest ? json_dumps(p->manifest, JSON_COMPACT) : NULL;
        buf_printf(&out, ",\"registered\":%s,\"transactions\":%u,\"pays_data\":%s,\"manifest\":",
                   p->on_chain ? "true" : "false", p->tx_count, pays_data(p) ? "true" : "false");
        buf_puts(&out, text ? text : "null");
        mem_free(text);
        buf_putc(&out, '}');
    } else {
        buf_printf(&out, "published %s: adapter ", p->c->value[OPT_NAME]);
        buf_put_hex(&out, p->adapter_id, 32);
        if (p->on_chain)
            buf_printf(&out, "\nregistered on chain %llu (%u transactions)",
                       (unsigned long long)p->d.chain_id, p->tx_count);
        put_terms(&out, p->report);
        if (p->manifest && !p->has_rows)
            buf_puts(&out, "\nno training manifest: its data pool follows the registered split");
        if (!p->manifest)
            buf_puts(&out, "\nwithout a manifest: no owner, prices or split");
        if (warning && *warning)
            buf_printf(&out, "\nwarning: %s", warning);
    }
    int code = cli_print(&out, CLI_FINE);
    buf_fini(&out);
    return code;
}

enum status adapter_publish_ready(struct cli *c, struct errtext *err)
{
    struct publish p = {.c = c};
    enum status st = check_options(&p, err);
    if (!st)
        st = load_source(&p, err);
    sign_source_fini(&p.source);
    return st;
}

int verb_adapter_publish(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct publish *p = mem_alloc(sizeof(*p));
    p->c = c;
    enum status st = check_options(p, &err);
    if (!st)
        st = load_source(p, &err);
    if (!st && p->has_source && !pays_data(p))
        cli_note(c,
                 "warning: the split has no share for data: whoever owns the documents that the "
                 "adapter learned from is paid nothing; role \"data\" in `split` would pay them");
    if (!st)
        st = check_rows(p, &err);
    if (!st)
        st = load_keys(p, &err);
    if (!st)
        st = open_chain(p, &err);
    if (!st)
        st = ask_model(p, &err);
    if (!st)
        st = find_id(p, &err);
    if (!st)
        st = sign_and_register(p, &err);
    if (!st)
        st = upload(p, &err);
    int code = st ? cli_fail(c, st, &err, p->hint) : print_done(p);
    json_decref(p->manifest);
    json_decref(p->report);
    datanet_release(p->datanet);
    sign_source_fini(&p->source);
    sign_publisher_fini(&p->publisher);
    secp_key_fini(&p->owner);
    secp_destroy(p->secp);
    http_close(p->http);
    node_close(&p->node);
    mem_free(p);
    return code;
}
