/* What a scripted chain holds, and the bytes of the Registry's views over it (book_fixture.h). */
#ifndef RS_TESTS_BOOK_CHAIN_H
#define RS_TESTS_BOOK_CHAIN_H

#include "chain_client/eth/abi.h"
#include "server/terms/book.h"

#include <pthread.h>
#include <string.h>

#define FAKE_ADAPTERS_MAX 16
#define FAKE_ENTRIES_MAX  4
#define FAKE_CHANGES_MAX  64

struct fake_entry {
    uint64_t active_at, version; /* version 0: no datanet */
    uint32_t price_in, price_out;
};
struct fake_adapter {
    uint8_t id[32], owner[20], datanet_id[32], parent[32]; /* parent 0: none */
    struct fake_entry entry[FAKE_ENTRIES_MAX];
    uint32_t count;
};
struct fake_chain {
    pthread_mutex_t lock; /* below */
    struct witness_head head;
    uint64_t notice_s;
    struct fake_adapter adapter[FAKE_ADAPTERS_MAX];
    uint32_t count;
    struct registry_tariff tariff[2];          /* ascending by active_at */
    uint8_t owner_root[32], document_root[32]; /* of every version */
    uint32_t documents, owners;
    struct {
        uint64_t block;
        uint8_t id[32];
    } change[FAKE_CHANGES_MAX];
    uint32_t change_count;
    const char *dead; /* why nothing is answered */
    uint32_t asked;   /* adapterAt */
};

static inline void fake_put_terms(const struct fake_chain *f, const uint8_t id[32], uint64_t t,
                                  struct buf *out)
{
    static const uint8_t zeros[32];
    const struct fake_adapter *a = NULL;
    const struct fake_entry *e = NULL;
    struct abi_tuple all, w;
    for (uint32_t i = 0; i < f->count && !a; i++)
        a = memcmp(f->adapter[i].id, id, 32) == 0 ? &f->adapter[i] : NULL;
    for (uint32_t i = 0; a && i < a->count; i++)
        e = a->entry[i].active_at <= t ? &a->entry[i] : e;
    abi_begin(&all, out, 1);
    abi_dynamic(&all);
    abi_begin(&w, out, 9);
    abi_bool(&w, e != NULL);
    abi_uint(&w, e ? e->active_at : 0);
    abi_bytes32(&w, zeros);
    abi_bytes32(&w, e ? a->datanet_id : zeros);
    abi_uint(&w, e ? e->version : 0);
    abi_uint(&w, e ? e->price_in : 0);
    abi_uint(&w, e ? e->price_out : 0);
    abi_dynamic(&w);
    abi_count(out, e ? 1 : 0);
    if (e) {
        struct abi_tuple split;
        abi_begin(&split, out, 3);
        abi_address(&split, a->owner);
        abi_uint(&split, REWARD_ROLE_AUTHOR);
        abi_uint(&split, REWARD_BPS);
        abi_end(&split);
    }
    bool has_parent = e && memcmp(a->parent, zeros, 32) != 0;
    abi_dynamic(&w);
    abi_count(out, has_parent);
    if (has_parent) {
        struct abi_tuple parent;
        abi_begin(&parent, out, 2);
        abi_bytes32(&parent, a->parent);
        abi_uint(&parent, 1000);
        abi_end(&parent);
    }
    abi_end(&w);
    abi_end(&all);
}

static inline void fake_put_net(const struct fake_chain *f, uint64_t version, struct buf *out)
{
    struct abi_tuple w;
    abi_begin(&w, out, 8);
    abi_bool(&w, true);
    abi_uint(&w, 1);
    abi_uint(&w, version);
    abi_bytes32(&w, f->document_root);
    abi_bytes32(&w, f->owner_root);
    abi_uint(&w, f->documents);
    abi_uint(&w, f->owners);
    abi_bytes32(&w, f->document_root);
    abi_end(&w);
}

static inline void fake_put_words(struct buf *out, u128 a, u128 b, u128 c, size_t count)
{
    struct abi_tuple w;
    u128 v[3] = {a, b, c};
    abi_begin(&w, out, count);
    for (size_t i = 0; i < count; i++)
        abi_uint(&w, v[i]);
    abi_end(&w);
}

#endif
