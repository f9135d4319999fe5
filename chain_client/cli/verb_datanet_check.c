/* residual datanet check and build. Checking goes on behind a fault, so that a publisher sees all
 * that is wrong at once, each with the way out; building refuses what a server would refuse, leaves
 * copies out by name, and fixes the order: what is built twice is the same bytes. */
#include "chain_client/cli/datanet_dir.h"
#include "chain_client/cli/place.h"
#include "chain_client/cli/registry.h"
#include "chain_client/eth/addr.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/datanet/copies.h"
#include "server/datanet/training.h"
#include "server/model/model_text.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define OUTPUT_BYTES_MAX ((size_t)512 << 20)

struct datanet_check {
    const struct cli *c;
    struct datanet *d;
    struct deployment place;
    struct documents_licensed licensed;
    struct secp *secp;
    struct buf text, out;
    uint32_t findings, rows, unsigned_count;
};

/* ---- findings ---- */

/* doc_id 0: of the list. */
static void found(struct datanet_check *k, uint64_t doc_id, const char *what)
{
    if (cli_has(k->c, OPT_JSON)) {
        buf_printf(&k->out, "%s{\"document\":%" PRIu64 ",\"finding\":", k->findings ? "," : "",
                   doc_id);
        buf_put_json_string(&k->out, what, strlen(what));
        buf_putc(&k->out, '}');
    } else if (doc_id) {
        buf_printf(&k->out, "document %" PRIu64 ": %s\n", doc_id, what);
    } else {
        buf_printf(&k->out, "%s\n", what);
    }
    k->findings++;
}

/* The text behind "documents: document N: ", which says again where it is. */
static const char *without_place(const char *text)
{
    const char *head = strstr(text, ": "), *place = head ? strstr(head + 2, ": ") : NULL;
    return place ? place + 2 : text;
}

static enum status count_row(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    (void)offset;
    (void)bytes;
    (void)err;
    ++*(uint32_t *)arg;
    return STATUS_OK;
}

static void check_document(struct datanet_check *k, uint32_t place)
{
    struct errtext why = ERRTEXT_INIT;
    const struct documents *list = datanet_documents(k->d);
    const struct documents_facts *f = &list->facts[place];
    if (datanet_text(k->d, place, &k->text, &why) ||
        rows_each(f->kind, k->text.data, k->text.len, count_row, &k->rows, &why))
        found(k, f->doc_id, why.text);
    if (f->is_copy)
        return;
    k->unsigned_count += !f->signature;
    err_clear(&why);
    if (k->secp && documents_check_licence(list, place, &k->licensed, k->secp, &why))
        found(k, f->doc_id, without_place(why.text));
}

static enum status check_copies(struct datanet_check *k, struct errtext *err)
{
    struct copies copies;
    const struct documents *list = datanet_documents(k->d);
    enum status st = copies_find(&copies, k->d, err);
    for (uint32_t i = 0; i < copies.count && !st; i++) {
        const struct copy_found *c = &copies.item[i];
        char what[256];
        snprintf(what, sizeof(what),
                 "says what document %" PRIu64
                 " says (%u %% alike), which is earlier: it earns nothing of its own; residual "
                 "datanet build leaves it out, residual datanet withdraw takes it off the list",
                 list->facts[c->of].doc_id, c->ppm / 10000);
        found(k, list->facts[c->place].doc_id, what);
    }
    copies_fini(&copies);
    return st;
}

static enum status check_training(struct datanet_check *k, struct errtext *err)
{
    struct training *t;
    struct errtext why = ERRTEXT_INIT;
    enum status st = training_load(&t, k->d, &why);
    if (st == STATUS_NO_MEMORY)
        return err_set(err, st, "%s", why.text);
    if (st && st != STATUS_NOT_FOUND)
        found(k, 0, why.text);
    training_free(t);
    return STATUS_OK;
}

/* Which datanet of which chain the owners signed for. */
static enum status check_place(struct datanet_check *k, struct errtext *err)
{
    const struct datanet_head *h = datanet_head(k->d);
    if (!cli_has(k->c, OPT_DEPLOYMENT))
        return STATUS_OK;
    enum status st = place_deployment(&k->place, k->c, err);
    if (!st && sodium_is_zero(h->id, 32))
        found(k, 0,
              "datanet.json has no datanetId, so nobody can have signed for it: residual datanet "
              "sign writes it");
    if (st || sodium_is_zero(h->id, 32))
        return st;
    k->licensed.chain_id = k->place.chain_id;
    memcpy(k->licensed.registry, k->place.registry, 20);
    memcpy(k->licensed.datanet_id, h->id, 32);
    return secp_create(&k->secp, err);
}

static enum status check_all(struct datanet_check *k, struct errtext *err)
{
    enum status st = datanet_open(&k->d, k->c->operand[0], NULL, err);
    if (!st)
        st = check_place(k, err);
    if (st)
        return st;
    const struct documents *list = datanet_documents(k->d);
    for (uint32_t i = 0; i < list->listed; i++)
        check_document(k, list->by_id[i]);
    if (!k->findings) /* what cannot be read cannot be compared */
        st = check_copies(k, err);
    return st ? st : check_training(k, err);
}

static void print_summary(struct datanet_check *k)
{
    const struct datanet_head *h = datanet_head(k->d);
    if (cli_has(k->c, OPT_JSON)) {
        buf_printf(&k->out, "],\"documents\":%u,\"rows\":%u,\"unsigned\":%u,\"ok\":%s}", h->n,
                   k->rows, k->unsigned_count, k->findings ? "false" : "true");
        return;
    }
    buf_printf(&k->out, "%u documents of %u owners, %u rows: %u findings", h->n, h->owners, k->rows,
               k->findings);
    if (k->unsigned_count)
        buf_printf(&k->out,
                   "\n%u documents are not signed by their owners, which a server bound to a chain "
                   "asks for: residual datanet sign",
                   k->unsigned_count);
    else if (!k->secp)
        buf_puts(&k->out, "\nthe signatures were not checked: --deployment says for which chain");
}

int verb_datanet_check(struct cli *c)
{
    struct datanet_check k = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    buf_init(&k.text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    buf_init(&k.out, OUTPUT_BYTES_MAX);
    if (cli_has(c, OPT_JSON))
        buf_puts(&k.out, "{\"findings\":[");
    enum status st = check_all(&k, &err);
    int code;
    if (st) {
        code = cli_fail(c, st, &err, NULL);
    } else {
        print_summary(&k);
        code = cli_print(&k.out, k.findings ? CLI_WRONG : CLI_FINE);
    }
    buf_fini(&k.text);
    buf_fini(&k.out);
    secp_destroy(k.secp);
    datanet_release(k.d);
    return code;
}

/* ---- build ---- */

struct datanet_build {
    const struct cli *c;
    struct datanet_dir dir;
    struct datanet *d;
    struct training *t;
    uint8_t tokenizer[32];
    bool bos, eos;
    struct buf out; /* lines about copies */
    uint32_t copies;
};

/* The tokenizer of the base: its digest, and whether it puts a BOS in front of a text. */
static enum status read_base(struct datanet_build *b, struct errtext *err)
{
    struct model m = {.config = {.n_vocab = TOKENIZER_ID_MAX, .bos_id = -1}};
    struct model_text text;
    enum status st = model_text_load(&m, &text, b->c->value[OPT_MODEL], false, err);
    if (st) {
        err_prefix(err, "%s", b->c->value[OPT_MODEL]);
    } else {
        crypto_generichash(b->tokenizer, 32, (const uint8_t *)text.tokenizer_json,
                           text.tokenizer_bytes, NULL, 0);
        b->bos = m.add_bos;
    }
    model_text_fini(&text);
    model_text_drop(&m);
    return st;
}

static enum status read_marks(struct datanet_build *b, struct errtext *err)
{
    static const char *const word[] = {"none", "bos", "eos", "both"};
    const char *given = b->c->value[OPT_MARKS];
    b->eos = true;
    for (unsigned i = 0; given && i < 4; i++) {
        if (strcmp(given, word[i]) == 0) {
            b->bos = i & 1;
            b->eos = i & 2;
            return STATUS_OK;
        }
    }
    return given ? err_set(err, STATUS_INVALID,
                           "--marks: found '%s', expected none, bos, eos or both", given)
                 : STATUS_OK;
}

static void mark_copy(struct datanet_build *b, const struct copy_found *c)
{
    char hex[67] = "0x";
    const struct documents *list = datanet_documents(b->d);
    uint64_t id = list->facts[c->place].doc_id, of = list->facts[c->of].doc_id;
    json_t *doc = json_array_get(b->dir.documents, datanet_dir_find(&b->dir, id));
    hex_encode(hex + 2, list->item[c->of].digest, 32);
    json_object_set_new(doc, "copyOf", json_string(hex));
    if (cli_has(b->c, OPT_JSON))
        buf_printf(&b->out, "%s{\"document\":%" PRIu64 ",\"of\":%" PRIu64 ",\"alike_ppm\":%u}",
                   b->copies ? "," : "", id, of, c->ppm);
    else
        buf_printf(&b->out,
                   "document %" PRIu64 " is left out: it says what document %" PRIu64
                   " says (%u %% alike)\n",
                   id, of, c->ppm / 10000);
    b->copies++;
}

/* The list says which tokenizer its rows are cut for, and which documents are copies. */
static enum status complete_list(struct datanet_build *b, struct errtext *err)
{
    struct copies copies = {0};
    char hex[67] = "0x";
    const struct datanet_head *h = datanet_head(b->d);
    bool is_new = sodium_is_zero(h->tokenizer_digest, 32);
    if (!is_new && memcmp(h->tokenizer_digest, b->tokenizer, 32) != 0)
        return err_set(err, STATUS_CONFLICT,
                       "%s: tokenizerDigest is of another base than %s; a version of a datanet is "
                       "for one tokenizer: remove the field, or make a datanet of its own",
                       b->dir.path, b->c->value[OPT_MODEL]);
    enum status st = copies_find(&copies, b->d, err);
    for (uint32_t i = 0; i < copies.count && !st; i++)
        mark_copy(b, &copies.item[i]);
    copies_fini(&copies);
    if (st || (!is_new && !b->copies))
        return st;
    hex_encode(hex + 2, b->tokenizer, 32);
    json_object_set_new(b->dir.json, "tokenizerDigest", json_string(hex));
    st = datanet_dir_save(&b->dir, err);
    datanet_release(b->d);
    b->d = NULL;
    return st ? st : datanet_open(&b->d, b->dir.dir, NULL, err);
}

static enum status write_rows(struct datanet_build *b, struct errtext *err)
{
    struct buf file;
    char path[PATH_MAX];
    buf_init(&file, TRAINING_BYTES_MAX);
    datanet_dir_path(path, &b->dir, TRAINING_FILE);
    enum status st = training_build(&b->t, b->d, b->bos, b->eos, b->tokenizer, err);
    if (!st)
        st = training_render(&file, b->t, b->d, err);
    if (!st)
        st = file_write_atomic(path, file.data, file.len, 0644, err);
    buf_fini(&file);
    return st;
}

static enum status build_all(struct datanet_build *b, struct errtext *err)
{
    enum status st = read_base(b, err);
    if (!st)
        st = read_marks(b, err);
    if (!st)
        st = datanet_dir_load(&b->dir, b->c->operand[0], err);
    if (!st)
        st = datanet_open(&b->d, b->dir.dir, NULL, err);
    if (!st)
        st = complete_list(b, err);
    return st ? st : write_rows(b, err);
}

static void print_build(struct datanet_build *b)
{
    const struct datanet_head *h = datanet_head(b->d);
    if (cli_has(b->c, OPT_JSON)) {
        buf_puts(&b->out, "],");
        buf_put_json_hex(&b->out, "document_root", h->document_root, 32);
        buf_putc(&b->out, ',');
        buf_put_json_hex(&b->out, "owner_root", h->owner_root, 32);
        buf_putc(&b->out, ',');
        buf_put_json_hex(&b->out, "training", b->t->digest, 32);
        buf_printf(&b->out,
                   ",\"documents\":%u,\"owners\":%u,\"rows\":%u,\"version\":%" PRIu64
                   ",\"ok\":true}",
                   h->n, h->owners, b->t->n, h->version);
        return;
    }
    buf_printf(&b->out,
               "version %" PRIu64 ": %u documents of %u owners, %u rows in " TRAINING_FILE
               "\ndocument root  ",
               h->version, h->n, h->owners, b->t->n);
    buf_put_hex(&b->out, h->document_root, 32);
    buf_puts(&b->out, "\nowner root     ");
    buf_put_hex(&b->out, h->owner_root, 32);
    buf_puts(&b->out, "\ntraining       ");
    buf_put_hex(&b->out, b->t->digest, 32);
}

int verb_datanet_build(struct cli *c)
{
    struct datanet_build b = {.c = c};
    struct errtext err = ERRTEXT_INIT;
    buf_init(&b.out, OUTPUT_BYTES_MAX);
    if (cli_has(c, OPT_JSON))
        buf_puts(&b.out, "{\"copies\":[");
    enum status st = build_all(&b, &err);
    if (!st)
        print_build(&b);
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&b.out, CLI_FINE);
    buf_fini(&b.out);
    training_free(b.t);
    datanet_release(b.d);
    datanet_dir_fini(&b.dir);
    return code;
}
