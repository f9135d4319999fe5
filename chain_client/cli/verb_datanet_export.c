/* residual datanet export DIR: what a datanet is, in two forms that other tools read: Croissant 1.1
 * (a file object for each document, and a record set of owners and licences) and SPDX 3.0.1 with
 * its dataset profile (a file for each document, its owner as originator, its declared licence).
 * Copies are in neither root, so they are in neither form. */
#include "chain_client/cli/cli.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/datanet/datanet.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define EXPORT_BYTES_MAX ((size_t)1 << 31)
#define LICENCES_MAX     256u

static const char croissant_context[] =
    "{\"@language\":\"en\",\"@vocab\":\"https://schema.org/\",\"arrayShape\":\"cr:arrayShape\","
    "\"citeAs\":\"cr:citeAs\",\"column\":\"cr:column\",\"conformsTo\":\"dct:conformsTo\","
    "\"containedIn\":\"cr:containedIn\",\"cr\":\"http://mlcommons.org/croissant/\","
    "\"data\":{\"@id\":\"cr:data\",\"@type\":\"@json\"},"
    "\"dataType\":{\"@id\":\"cr:dataType\",\"@type\":\"@vocab\"},"
    "\"dct\":\"http://purl.org/dc/terms/\",\"description\":{\"@container\":\"@language\"},"
    "\"equivalentProperty\":\"cr:equivalentProperty\","
    "\"examples\":{\"@id\":\"cr:examples\",\"@type\":\"@json\"},\"extract\":\"cr:extract\","
    "\"field\":\"cr:field\",\"fileObject\":\"cr:fileObject\",\"fileProperty\":\"cr:fileProperty\","
    "\"fileSet\":\"cr:fileSet\",\"format\":\"cr:format\",\"includes\":\"cr:includes\","
    "\"isArray\":\"cr:isArray\",\"isLiveDataset\":\"cr:isLiveDataset\",\"jsonPath\":\"cr:"
    "jsonPath\","
    "\"key\":\"cr:key\",\"md5\":\"cr:md5\",\"name\":{\"@container\":\"@language\"},"
    "\"parentField\":\"cr:parentField\",\"path\":\"cr:path\","
    "\"rai\":\"http://mlcommons.org/croissant/RAI/\",\"recordSet\":\"cr:recordSet\","
    "\"references\":\"cr:references\",\"regex\":\"cr:regex\",\"repeated\":\"cr:repeated\","
    "\"replace\":\"cr:replace\",\"samplingRate\":\"cr:samplingRate\","
    "\"sc\":\"https://schema.org/\",\"separator\":\"cr:separator\",\"source\":\"cr:source\","
    "\"subField\":\"cr:subField\",\"transform\":\"cr:transform\"}";

struct exporting {
    const struct datanet *d;
    const struct datanet_head *head;
    const char *licence[LICENCES_MAX]; /* those there are */
    uint32_t licences;
    char root[67], day[16], second[32];
};

static void put_string(struct buf *out, const char *text)
{
    buf_put_json_string(out, text, strlen(text));
}

static void hex_text(char out[67], const uint8_t value[32])
{
    memcpy(out, "0x", 2);
    hex_encode(out + 2, value, 32);
}

static uint32_t licence_place(const struct exporting *e, const char *licence)
{
    uint32_t i = 0;
    while (i < e->licences && strcmp(e->licence[i], licence) != 0)
        i++;
    return i;
}

static enum status open_export(struct exporting *e, const char *dir, struct datanet **d,
                               struct errtext *err)
{
    time_t now = time(NULL);
    struct tm utc;
    enum status st = datanet_open(d, dir, NULL, err);
    if (st)
        return st;
    *e = (struct exporting){.d = *d, .head = datanet_head(*d)};
    hex_text(e->root, e->head->document_root);
    gmtime_r(&now, &utc);
    strftime(e->day, sizeof(e->day), "%Y-%m-%d", &utc);
    strftime(e->second, sizeof(e->second), "%Y-%m-%dT%H:%M:%SZ", &utc);
    for (uint32_t i = 0; i < e->head->n; i++) {
        const char *licence = datanet_facts(*d, i)->licence;
        if (licence_place(e, licence) < e->licences)
            continue;
        if (e->licences == LICENCES_MAX)
            return err_set(err, STATUS_TOO_LARGE, "more than %u licences", LICENCES_MAX);
        e->licence[e->licences++] = licence;
    }
    return STATUS_OK;
}

/* An expression of one licence of SPDX's list has an address. */
static void put_licence_uri(struct buf *out, const char *licence)
{
    bool one =
        strcspn(licence, " ()+:") == strlen(licence) && strncmp(licence, "LicenseRef-", 11) != 0;
    buf_puts(out, one ? "\"https://spdx.org/licenses/" : "\"");
    buf_puts(out, licence); /* spdx_check let no quote pass */
    buf_putc(out, '"');
}

static const char *mime(enum rows_kind kind)
{
    static const char *const types[ROWS_KIND_COUNT] = {[ROWS_TEXT] = "text/plain",
                                                       [ROWS_MARKDOWN] = "text/markdown",
                                                       [ROWS_ROWS] = "application/jsonlines",
                                                       [ROWS_CHATS] = "application/jsonlines"};
    return types[kind];
}

/* ---- Croissant ---- */

static enum status put_file_object(struct buf *out, const struct exporting *e, uint32_t i,
                                   struct buf *text, struct errtext *err)
{
    uint8_t sha[crypto_hash_sha256_BYTES];
    char hex[65], name[32];
    const struct documents_facts *f = datanet_facts(e->d, i);
    enum status st = datanet_text(e->d, i, text, err);
    if (st)
        return st == STATUS_NOT_FOUND ? STATUS_INVALID : st;
    crypto_hash_sha256(sha, (const uint8_t *)text->data, text->len);
    hex_encode(hex, sha, sizeof(sha));
    snprintf(name, sizeof(name), "document-%" PRIu64, f->doc_id);
    buf_printf(out, "%s{\"@type\":\"cr:FileObject\",\"@id\":\"%s\",\"name\":\"%s\",\"contentUrl\":",
               i ? "," : "", name, name);
    put_string(out, f->file);
    buf_printf(out,
               ",\"contentSize\":\"%" PRIu64 " B\",\"encodingFormat\":\"%s\",\"sha256\":\"%s\"}",
               (uint64_t)text->len, mime(f->kind), hex);
    return STATUS_OK;
}

static void put_record(struct buf *out, const struct exporting *e, uint32_t i)
{
    char owner[ADDR_TEXT_BYTES], digest[67];
    const struct documents_facts *f = datanet_facts(e->d, i);
    addr_format(owner, datanet_document(e->d, i)->owner);
    hex_text(digest, datanet_document(e->d, i)->digest);
    buf_printf(out,
               "%s{\"documents/id\":%" PRIu64 ",\"documents/digest\":\"%s\",\"documents/owner\":"
               "\"%s\",\"documents/since\":%" PRIu64 ",\"documents/display\":%s,"
               "\"documents/licence\":",
               i ? "," : "", f->doc_id, digest, owner, f->since, f->display ? "true" : "false");
    put_string(out, f->licence);
    buf_puts(out, ",\"documents/terms\":");
    put_string(out, f->terms);
    buf_putc(out, '}');
}

static void put_record_set(struct buf *out, const struct exporting *e)
{
    static const struct {
        const char *name, *type, *about;
    } field[] = {{"id", "sc:Integer", "docId of the list"},
                 {"digest", "sc:Text", "BLAKE2b-256 of the text in Unicode's normal form C"},
                 {"owner", "sc:Text", "the account that is paid"},
                 {"since", "sc:Integer", "the first version that has it"},
                 {"display", "sc:Boolean", "may its text be shown beside answers?"},
                 {"licence", "sc:Text", "an SPDX licence expression"},
                 {"terms", "sc:Text", "a URI with more about its use, or nothing"}};
    buf_puts(out, "\"recordSet\":[{\"@type\":\"cr:RecordSet\",\"@id\":\"documents\",\"name\":"
                  "\"documents\",\"description\":\"Who owns each document, and how it may be "
                  "used.\",\"key\":{\"@id\":\"documents/id\"},\"field\":[");
    for (size_t i = 0; i < ARRAY_COUNT(field); i++)
        buf_printf(out,
                   "%s{\"@type\":\"cr:Field\",\"@id\":\"documents/%s\",\"name\":\"documents/%s\","
                   "\"description\":\"%s\",\"dataType\":\"%s\"}",
                   i ? "," : "", field[i].name, field[i].name, field[i].about, field[i].type);
    buf_puts(out, "],\"data\":[");
    for (uint32_t i = 0; i < e->head->n; i++)
        put_record(out, e, i);
    buf_puts(out, "]}]");
}

static enum status put_croissant(struct buf *out, const struct exporting *e, struct errtext *err)
{
    struct buf text;
    enum status st = STATUS_OK;
    buf_printf(out, "{\"@context\":%s,\"@type\":\"sc:Dataset\",", croissant_context);
    buf_puts(out, "\"conformsTo\":\"http://mlcommons.org/croissant/1.1\",\"name\":");
    put_string(out, e->head->name);
    buf_printf(out,
               ",\"version\":\"%" PRIu64 ".0.0\",\"datePublished\":\"%s\",\"url\":"
               "\"urn:residual:documents:%s\",\"description\":\"%u documents of %u owners; "
               "document root %s.\",\"license\":[",
               e->head->version, e->day, e->root, e->head->n, e->head->owners, e->root);
    for (uint32_t i = 0; i < e->licences; i++) {
        buf_puts(out, i ? "," : "");
        put_licence_uri(out, e->licence[i]);
    }
    buf_puts(out, "],\"creator\":[");
    for (uint32_t i = 0; i < e->head->owners; i++) {
        char owner[ADDR_TEXT_BYTES];
        addr_format(owner, datanet_documents(e->d)->owner[i].owner);
        buf_printf(out, "%s{\"@type\":\"sc:Person\",\"name\":\"%s\"}", i ? "," : "", owner);
    }
    buf_puts(out, "],\"distribution\":[");
    buf_init(&text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    for (uint32_t i = 0; !st && i < e->head->n; i++)
        st = put_file_object(out, e, i, &text, err);
    buf_fini(&text);
    buf_puts(out, "],");
    put_record_set(out, e);
    buf_puts(out, "}\n");
    return st;
}

/* ---- SPDX ---- */

#define SPDX_ELEMENT "\"creationInfo\":\"_:creation\""

static void put_file(struct buf *out, const struct exporting *e, uint32_t i)
{
    char owner[ADDR_TEXT_BYTES], hex[65];
    const struct documents_facts *f = datanet_facts(e->d, i);
    const struct datanet_document *doc = datanet_document(e->d, i);
    addr_format(owner, doc->owner);
    hex_encode(hex, doc->digest, 32);
    buf_printf(
        out,
        ",{\"type\":\"software_File\",\"spdxId\":\"urn:residual:document:0x%s\"," SPDX_ELEMENT
        ",\"name\":",
        hex);
    put_string(out, f->file ? f->file : hex);
    buf_printf(out,
               ",\"software_primaryPurpose\":\"data\",\"contentType\":\"%s\",\"originatedBy\":["
               "\"urn:residual:account:%s\"],\"verifiedUsing\":[{\"type\":\"Hash\",\"algorithm\":"
               "\"blake2b256\",\"hashValue\":\"%s\"}]",
               mime(f->kind), owner, hex);
    if (*f->terms) {
        buf_puts(out, ",\"externalRef\":[{\"type\":\"ExternalRef\",\"externalRefType\":\"license\","
                      "\"locator\":[");
        put_string(out, f->terms);
        buf_puts(out, "]}]");
    }
    buf_printf(
        out,
        "},{\"type\":\"Relationship\",\"spdxId\":\"urn:residual:licensed:0x%s\"," SPDX_ELEMENT
        ",\"relationshipType\":\"hasDeclaredLicense\",\"from\":\"urn:residual:document:0x%s\""
        ",\"to\":[\"urn:residual:licence:%s:%u\"]}",
        hex, hex, e->root, licence_place(e, f->licence));
}

static void put_agents(struct buf *out, const struct exporting *e)
{
    for (uint32_t i = 0; i < e->head->owners; i++) {
        char owner[ADDR_TEXT_BYTES];
        addr_format(owner, datanet_documents(e->d)->owner[i].owner);
        buf_printf(out,
                   ",{\"type\":\"Agent\",\"spdxId\":\"urn:residual:account:%s\"," SPDX_ELEMENT
                   ",\"name\":\"%s\"}",
                   owner, owner);
    }
    for (uint32_t i = 0; i < e->licences; i++) {
        buf_printf(out,
                   ",{\"type\":\"simplelicensing_LicenseExpression\",\"spdxId\":"
                   "\"urn:residual:licence:%s:%u\"," SPDX_ELEMENT
                   ",\"simplelicensing_licenseExpression\":",
                   e->root, i);
        put_string(out, e->licence[i]);
        buf_putc(out, '}');
    }
}

static void put_originators(struct buf *out, const struct exporting *e)
{
    for (uint32_t i = 0; i < e->head->owners; i++) {
        char owner[ADDR_TEXT_BYTES];
        addr_format(owner, datanet_documents(e->d)->owner[i].owner);
        buf_printf(out, "%s\"urn:residual:account:%s\"", i ? "," : "", owner);
    }
}

static void put_contents(struct buf *out, const struct exporting *e)
{
    for (uint32_t i = 0; i < e->head->n; i++) {
        char hex[65];
        hex_encode(hex, datanet_document(e->d, i)->digest, 32);
        buf_printf(out, "%s\"urn:residual:document:0x%s\"", i ? "," : "", hex);
    }
}

static void put_spdx(struct buf *out, const struct exporting *e)
{
    buf_printf(out,
               "{\"@context\":\"https://spdx.org/rdf/3.0.1/spdx-context.jsonld\",\"@graph\":["
               "{\"type\":\"CreationInfo\",\"@id\":\"_:creation\",\"specVersion\":\"3.0.1\","
               "\"created\":\"%s\",\"createdBy\":[\"urn:residual:program\"]},"
               "{\"type\":\"SoftwareAgent\",\"spdxId\":\"urn:residual:program\"," SPDX_ELEMENT
               ",\"name\":\"residual\"},"
               "{\"type\":\"SpdxDocument\",\"spdxId\":\"urn:residual:spdx:%s\"," SPDX_ELEMENT
               ",\"profileConformance\":[\"core\",\"software\",\"dataset\",\"simpleLicensing\"],"
               "\"rootElement\":[\"urn:residual:documents:%s\"]},"
               "{\"type\":\"dataset_DatasetPackage\",\"spdxId\":\"urn:residual:documents:%s\"," //
               SPDX_ELEMENT ",\"name\":",
               e->second, e->root, e->root, e->root);
    put_string(out, e->head->name);
    buf_printf(out,
               ",\"software_packageVersion\":\"%" PRIu64 "\",\"software_primaryPurpose\":\"data\","
               "\"software_downloadLocation\":\"urn:residual:documents:%s\",\"builtTime\":\"%s\","
               "\"releaseTime\":\"%s\",\"dataset_datasetType\":[\"text\"],"
               "\"dataset_datasetSize\":%" PRIu64 ",\"originatedBy\":[",
               e->head->version, e->root, e->second, e->second, e->head->bytes);
    put_originators(out, e);
    buf_printf(out,
               "]},{\"type\":\"Relationship\",\"spdxId\":\"urn:residual:contents:%s\"," SPDX_ELEMENT
               ",\"relationshipType\":\"contains\",\"from\":\"urn:residual:documents:%s\",\"to\":[",
               e->root, e->root);
    put_contents(out, e);
    buf_puts(out, "]}");
    put_agents(out, e);
    for (uint32_t i = 0; i < e->head->n; i++)
        put_file(out, e, i);
    buf_puts(out, "]}\n");
}

/* ---- the verb ---- */

static enum status write_out(const char *path, const struct buf *text, struct errtext *err)
{
    return text->failed ? err_set(err, STATUS_NO_MEMORY, "%s: no memory for it", path)
                        : file_write_atomic(path, text->data, text->len, 0644, err);
}

static enum status export(const struct cli *c, const struct exporting *e, struct errtext *err) {
    struct buf out; enum status st = STATUS_OK; buf_init(&out, EXPORT_BYTES_MAX);
    if (cli_has(c, OPT_CROISSANT)){st = put_croissant(&out, e, err);
                                   if (!st) st = write_out(c->value[OPT_CROISSANT], &out, err);}
buf_clear(&out);
if (!st && cli_has(c, OPT_SPDX)) {
    put_spdx(&out, e);
    st = write_out(c->value[OPT_SPDX], &out, err);
}
buf_fini(&out);
return st;
}

int verb_datanet_export(struct cli *c)
{
    struct errtext err = ERRTEXT_INIT;
    struct exporting e;
    struct datanet *d = NULL;
    struct buf out;
    enum status st = STATUS_OK;
    if (!cli_has(c, OPT_CROISSANT) && !cli_has(c, OPT_SPDX))
        st = err_set(&err, STATUS_INVALID, "give --croissant FILE, --spdx FILE or both");
    if (!st)
        st = open_export(&e, c->operand[0], &d, &err);
    if (!st)
        st = export(c, &e, &err);
    buf_init(&out, 4096);
    if (!st && cli_has(c, OPT_JSON))
        buf_printf(&out, "{\"ok\":true,\"documents\":%u}", e.head->n);
    else if (!st)
        buf_printf(&out, "exported %u documents of %u owners", e.head->n, e.head->owners);
    int code = st ? cli_fail(c, st, &err, NULL) : cli_print(&out, CLI_FINE);
    buf_fini(&out);
    datanet_release(d);
    return code;
}
