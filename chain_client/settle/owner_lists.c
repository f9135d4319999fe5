/* Every list is checked against the Registry's root and counts where it enters; what is rendered
 * from it is then the only owners.json there can be. */
#include "chain_client/settle/owner_lists.h"
#include "chain_client/settle/archive.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void owner_list_name(char out[OWNER_LIST_NAME_BYTES], const struct snapshot_version *v)
{
    char hex[65];
    hex_encode(hex, v->datanet_id, 32);
    snprintf(out, OWNER_LIST_NAME_BYTES, "datanet 0x%s version %" PRIu64, hex, v->version);
}

enum status owner_list_check(const struct snapshot_version *v, const struct datanet_owner *owner,
                             size_t count, struct errtext *err)
{
    char name[OWNER_LIST_NAME_BYTES];
    uint8_t root[32];
    uint64_t documents = 0;
    const char *wrong = NULL;
    owner_list_name(name, v);
    for (size_t i = 0; i < count; i++)
        documents += owner[i].documents;
    if (count != v->found.owners)
        wrong = "the number of its owners is not the registry's";
    else if (documents != v->found.documents)
        wrong = "the number of its documents is not the registry's";
    else if (datanet_owner_root(root, owner, count, NULL) ||
             memcmp(root, v->found.owner_root, 32) != 0)
        wrong = "its owners do not have the registry's root";
    return wrong ? err_set(err, STATUS_CORRUPT, "%s: %s", name, wrong) : STATUS_OK;
}

bool owner_list_is_absent(const struct snapshot_version *v, size_t count)
{
    return count == 0 && v->found.registered && v->found.owners != 0;
}

static enum status take(struct owner_lists *o, const struct snapshot_version *v,
                        struct datanet_owner *owner, size_t count, struct errtext *err)
{
    struct reward_owners *list = &o->list[o->count++];
    *list = (struct reward_owners){.version = v->version, .owner = owner, .count = count};
    memcpy(list->datanet_id, v->datanet_id, 32);
    return v->found.registered && !owner_list_is_absent(v, count)
               ? owner_list_check(v, owner, count, err)
               : STATUS_OK;
}

enum status owner_lists_read(struct owner_lists *o, const struct snapshot *s,
                             const struct owner_lists_source *source, struct errtext *err)
{
    enum status st = STATUS_OK;
    *o = (struct owner_lists){.list = mem_try_array(s->version_count + 1, sizeof(*o->list))};
    if (!o->list)
        return err_set(err, STATUS_NO_MEMORY, "no memory for owners");
    for (size_t i = 0; i < s->version_count && !st; i++) {
        struct datanet_owner *owner = NULL;
        size_t count = 0;
        if (s->version[i].found.registered)
            st = source->read(source->arg, &s->version[i], &owner, &count, err);
        if (!st)
            st = take(o, &s->version[i], owner, count, err);
    }
    if (st)
        owner_lists_fini(o);
    return st;
}

void owner_lists_fini(struct owner_lists *o)
{
    for (size_t i = 0; i < o->count; i++)
        mem_free((void *)(uintptr_t)o->list[i].owner);
    mem_free(o->list);
    *o = (struct owner_lists){0};
}

/* ---- texts ---- */

void owner_lists_put(struct buf *out, const struct owner_lists *o, uint64_t epoch)
{
    buf_puts(out, "{\"datanets\":[");
    for (size_t i = 0; i < o->count; i++) {
        const struct reward_owners *l = &o->list[i];
        buf_puts(out, i ? ",{\"id\":" : "{\"id\":");
        archive_put_hex(out, l->datanet_id, 32);
        buf_puts(out, ",\"owners\":[");
        for (size_t k = 0; k < l->count; k++) {
            buf_printf(out, "%s{\"documents\":%" PRIu32 ",\"owner\":", k ? "," : "",
                       l->owner[k].documents);
            archive_put_hex(out, l->owner[k].owner, 20);
            buf_putc(out, '}');
        }
        buf_printf(out, "],\"version\":%" PRIu64 "}", l->version);
    }
    buf_printf(out, "],\"epoch\":%" PRIu64 ",\"format\":\"residual.owners.1\"}\n", epoch);
}

static enum status take_list(struct json_reader *r, struct datanet_owner **owner, size_t *count)
{
    const json_t *list = json_need_list(r, "owners", DATANET_DOCUMENTS_MAX);
    *count = json_array_size(list);
    *owner = mem_try_array(*count + 1, sizeof(**owner));
    if (!*owner)
        json_fail(r, STATUS_NO_MEMORY, "owners", "no memory for %zu", *count);
    for (size_t i = 0; !r->st && i < *count; i++) {
        struct json_reader o = json_enter_item(r, "owners", i, json_array_get(list, i));
        json_need_hex(&o, "owner", (*owner)[i].owner, 20);
        (*owner)[i].documents =
            (uint32_t)json_need_int(&o, "documents", (struct json_range){1, UINT32_MAX});
    }
    return r->st;
}

static void free_list(struct datanet_owner **owner)
{
    mem_free(*owner);
    *owner = NULL;
}

enum status owner_list_parse(struct datanet_owner **owner, size_t *count,
                             const struct snapshot_version *v, const char *where,
                             const struct canon_bytes *text, struct errtext *err)
{
    json_t *root;
    uint8_t id[32] = {0};
    *owner = NULL;
    enum status st = json_doc_parse(&root, where, (const char *)text->data, text->len, 0, err);
    if (st)
        return st == STATUS_INVALID ? STATUS_CORRUPT : st;
    struct json_reader r = {.obj = root, .where = where, .wrong = STATUS_CORRUPT, .err = err};
    json_need_hex(&r, "datanet", id, 32);
    int64_t version = json_need_int(&r, "version", (struct json_range){1, INT64_MAX});
    if (!r.st && (memcmp(id, v->datanet_id, 32) != 0 || (uint64_t)version != v->version))
        json_fail(&r, STATUS_CORRUPT, "datanet", "another datanet or version than was asked for");
    st = r.st ? r.st : take_list(&r, owner, count);
    if (st)
        free_list(owner);
    json_decref(root);
    return st;
}

/* ---- the archive ---- */

/* The lists of a parsed owners.json, in the order in which they are asked for. */
struct published {
    struct json_reader *r;
    const json_t *list;
    size_t at;
};

static enum status read_published(void *arg, const struct snapshot_version *v,
                                  struct datanet_owner **owner, size_t *count, struct errtext *err)
{
    struct published *p = arg;
    struct json_reader o = json_enter_item(p->r, "datanets", p->at, json_array_get(p->list, p->at));
    p->at++;
    enum status st = take_list(&o, owner, count);
    if (st)
        free_list(owner);
    return st;
}

enum status owner_lists_archive(struct owner_lists *o, const struct snapshot *s, const char *dir,
                                uint64_t epoch, struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    struct canon_bytes text;
    struct buf again;
    json_t *root;
    *o = (struct owner_lists){0};
    archive_epoch_name(name, epoch);
    enum status st = archive_read(dir, name, "owners.json", ARCHIVE_TEXT_BYTES_MAX, &text, err);
    if (st)
        return st;
    buf_init(&again, ARCHIVE_TEXT_BYTES_MAX);
    st = json_doc_parse(&root, "owners.json", (const char *)text.data, text.len, 0, err);
    st = st == STATUS_INVALID ? STATUS_CORRUPT : st;
    struct json_reader r = {
        .obj = root, .where = "owners.json", .wrong = STATUS_CORRUPT, .err = err};
    struct published p = {&r, st ? NULL : json_need_list(&r, "datanets", s->version_count), 0};
    struct owner_lists_source source = {read_published, &p};
    if (!st)
        st = r.st ? r.st : owner_lists_read(o, s, &source, err);
    if (!st)
        owner_lists_put(&again, o, epoch);
    if (!st &&
        (again.failed || again.len != text.len || memcmp(again.data, text.data, text.len) != 0))
        st = err_set(err, STATUS_CORRUPT, "owners.json: is not the named versions' one form");
    if (st) {
        err_prefix(err, "%s", name);
        owner_lists_fini(o);
    }
    buf_fini(&again);
    json_decref(root);
    mem_free((void *)(uintptr_t)text.data);
    return st;
}

static enum status find_list(const json_t *root, const struct snapshot_version *v,
                             struct datanet_owner **owner, size_t *count)
{
    struct json_reader r = {.obj = root, .where = "owners.json", .wrong = STATUS_CORRUPT};
    const json_t *list = json_need_list(&r, "datanets", SIZE_MAX);
    for (size_t i = 0; i < json_array_size(list) && !r.st; i++) {
        struct json_reader o = json_enter_item(&r, "datanets", i, json_array_get(list, i));
        uint8_t id[32] = {0};
        json_need_hex(&o, "id", id, 32);
        int64_t version = json_need_int(&o, "version", (struct json_range){0, INT64_MAX});
        if (!r.st && memcmp(id, v->datanet_id, 32) == 0 && (uint64_t)version == v->version)
            return take_list(&o, owner, count);
    }
    return r.st ? r.st : STATUS_NOT_FOUND;
}

enum status owner_list_find(struct datanet_owner **owner, size_t *count,
                            const struct snapshot_version *v, const char *dir, uint64_t epoch)
{
    char name[ARCHIVE_NAME_BYTES];
    struct canon_bytes text;
    json_t *root;
    *owner = NULL;
    archive_epoch_name(name, epoch);
    enum status st = archive_read(dir, name, "owners.json", ARCHIVE_TEXT_BYTES_MAX, &text, NULL);
    if (st)
        return st;
    st = json_doc_parse(&root, "owners.json", (const char *)text.data, text.len, 0, NULL);
    if (!st)
        st = find_list(root, v, owner, count);
    if (!st)
        st = owner_list_check(v, *owner, *count, NULL);
    if (st)
        free_list(owner);
    json_decref(root);
    mem_free((void *)(uintptr_t)text.data);
    return st;
}
