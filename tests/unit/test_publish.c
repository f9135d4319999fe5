/* Admission from outside: what is kept, under whose name, within which bounds, and what is left of
 * it after a restart. */
#include "server/adapter/publish.h"
#include "tests/unit/adapter_fixture.h"
#include "tests/unit/full_disk.h"
#include "tests/unit/manifest_fixture.h"

static struct catalog *catalog;
static struct publisher *publisher;
static struct publish_options options;
static char adapters_dir[128], root_dir[128];
static struct manifest_keys keys;

static void open_publisher(void)
{
    struct errtext err = ERRTEXT_INIT;
    catalog = catalog_create(16);
    catalog_reserve_name(catalog, "base");
    if (publisher_create(&publisher, &options, catalog, &err))
        fail_msg("%s", err.text);
}

static void close_publisher(void)
{
    publisher_destroy(publisher);
    catalog_destroy(catalog);
}

static int setup(void **state)
{
    if (make_world(state))
        return -1;
    snprintf(adapters_dir, sizeof(adapters_dir), "%s/kept", test_dir);
    snprintf(root_dir, sizeof(root_dir), "%s/root", test_dir);
    if (file_mkdirs(root_dir, 0700, NULL))
        return -1;
    options = (struct publish_options){.model = &base,
                                       .dtype = DTYPE_F32,
                                       .adapters_dir = adapters_dir,
                                       .root = {root_dir},
                                       .root_count = 1,
                                       .limits = {.bytes_max = 64 << 10, .rank_max = 16},
                                       .publisher_bytes_max = 1 << 20,
                                       .chain_id = 31337};
    memset(options.model_id, 2, 32);
    memset(options.registry, 3, 20);
    keys_create(&keys, 7);
    open_publisher();
    return 0;
}

static int teardown(void **state)
{
    close_publisher();
    keys_destroy(&keys);
    return drop_world(state);
}

static uint32_t restart(void)
{
    struct errtext err = ERRTEXT_INIT;
    uint32_t count;
    close_publisher();
    open_publisher();
    if (publisher_recover(publisher, &count, &err))
        fail_msg("%s", err.text);
    return count;
}

struct ask { /* one upload */
    const char *name, *key, *chat_template;
    uint32_t seed, rank;
    uint64_t version; /* 0: no manifest */
    bool replace, dry_run;
};

static void id_of(uint32_t seed, uint32_t rank, uint8_t id[32])
{
    struct peft_adapter a;
    size_t len;
    char *config = adapter_config(rank), *tensors = adapter_tensors(seed, rank, &len);
    assert_int_equal(peft_from_bytes(&a, config, strlen(config), tensors, len, &base, NULL),
                     STATUS_OK);
    memcpy(id, a.id, 32);
    peft_fini(&a);
}

static json_t *make_manifest(uint32_t seed, uint32_t rank, uint64_t version)
{
    struct manifest m = {.version = version, .chain_id = 31337, .tariff = {100 * version, 5}};
    id_of(seed, rank, m.adapter_id);
    memset(m.model_id, 2, 32);
    memset(m.registry, 3, 20);
    return manifest_json(&m, &keys);
}

static enum status upload(struct ask a, struct buf *report, struct errtext *err)
{
    size_t len;
    struct buf own;
    uint32_t rank = a.rank ? a.rank : 4;
    char *config = adapter_config(rank), *tensors = adapter_tensors(a.seed, rank, &len);
    json_t *manifest = a.version ? make_manifest(a.seed, rank, a.version) : NULL;
    struct publish_upload u = {.name = a.name,
                               .key_name = a.key ? a.key : "alice",
                               .config_json = config,
                               .config_bytes = strlen(config),
                               .tensors = tensors,
                               .tensor_bytes = len,
                               .manifest = manifest,
                               .chat_template = a.chat_template,
                               .replace = a.replace,
                               .dry_run = a.dry_run};
    buf_init(&own, 1 << 16);
    enum status st = publisher_upload(publisher, &u, report ? report : &own, err);
    buf_fini(&own);
    json_decref(manifest);
    mem_free(config);
    mem_free(tensors);
    return st;
}

static void must(struct ask a)
{
    struct errtext err = ERRTEXT_INIT;
    if (upload(a, NULL, &err))
        fail_msg("%s: %s", a.name, err.text);
}

static void refused(struct ask a, enum status want, const char *text)
{
    struct errtext err = ERRTEXT_INIT;
    enum status st = upload(a, NULL, &err);
    if (st != want || !strstr(err.text, text))
        fail_msg("%s: %s '%s', wanted %s '%s'", a.name, status_name(st), err.text,
                 status_name(want), text);
}

/* The name serves this content (seed), for this key. */
static void serves(const char *name, uint32_t seed, const char *key)
{
    uint8_t id[32];
    struct adapter_entry *e = catalog_find(catalog, name);
    if (!e)
        fail_msg("'%s' is not registered", name);
    id_of(seed, 4, id);
    assert_memory_equal(e->id, id, 32);
    assert_string_equal(e->publisher, key);
    struct peft_adapter a; /* its files are there */
    assert_int_equal(peft_read_dir(&a, e->dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    assert_memory_equal(a.id, id, 32);
    peft_fini(&a);
    catalog_release(e);
}

static void is_gone(const char *name)
{
    struct adapter_entry *e = catalog_find(catalog, name);
    assert_null(e);
}

static uint32_t kept_dirs(void)
{
    char cmd[256], text[16];
    snprintf(cmd, sizeof(cmd), "ls %s | wc -l", adapters_dir);
    FILE *f = popen(cmd, "r");
    assert_non_null(fgets(text, sizeof(text), f));
    pclose(f);
    return (uint32_t)atol(text);
}

static void forget(const char *name)
{
    struct adapter_entry *e = catalog_remove(catalog, name);
    assert_non_null(e);
    publisher_forget(publisher, e);
    catalog_release(e);
}

static void test_upload(void **state)
{
    struct buf report;
    struct errtext err = ERRTEXT_INIT;
    uint8_t id[32];
    char hex[65];
    buf_init(&report, 1 << 16);
    /* a dry run tells everything and keeps nothing */
    assert_int_equal(upload((struct ask){.name = "m", .seed = 1, .dry_run = true}, &report, &err),
                     STATUS_OK);
    json_t *j = json_loadb(report.data, report.len, 0, NULL);
    assert_non_null(j);
    id_of(1, 4, id);
    hex_encode(hex, id, 32);
    assert_string_equal(json_string_value(json_object_get(j, "id")) + 2, hex);
    assert_true(json_is_true(json_object_get(j, "dry_run")));
    assert_int_equal(json_integer_value(json_object_get(j, "rank_max")), 4);
    json_decref(j);
    is_gone("m");
    assert_int_equal(kept_dirs(), 0);
    must((struct ask){.name = "m", .seed = 1});
    serves("m", 1, "alice");
    must((struct ask){.name = "dir/with-slash", .seed = 2});
    assert_int_equal(kept_dirs(), 2);
    assert_int_equal(restart(), 2);
    serves("m", 1, "alice");
    serves("dir/with-slash", 2, "alice");
    forget("m");
    assert_int_equal(kept_dirs(), 1);
    assert_int_equal(restart(), 1);
    is_gone("m");
    buf_fini(&report);
}

/* An adapter takes no room of records, and can be published again. */
static void test_full_disk(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    disk_is_full = true;
    assert_int_equal(upload((struct ask){.name = "m", .seed = 1}, NULL, &err), STATUS_FULL);
    disk_is_full = false;
    assert_string_equal(err.code, FILE_DISK_FULL);
    is_gone("m");
    assert_int_equal(kept_dirs(), 0);
    must((struct ask){.name = "m", .seed = 1});
    forget("m");
}

static void test_refused(void **state)
{
    char longest[CATALOG_NAME_MAX + 2];
    memset(longest, 'x', sizeof(longest));
    longest[CATALOG_NAME_MAX + 1] = '\0';
    refused((struct ask){.name = longest, .seed = 1}, STATUS_INVALID, "1 to 128");
    refused((struct ask){.name = "base", .seed = 1}, STATUS_INVALID, "base model's name");
    refused((struct ask){.name = "a b", .seed = 1}, STATUS_INVALID, "expected");
    refused((struct ask){.name = "m", .seed = 1, .rank = 17}, STATUS_UNSUPPORTED,
            "adapter_rank_max");
    options.limits.bytes_max = 64;
    assert_int_equal(restart(), 0);
    refused((struct ask){.name = "m", .seed = 1}, STATUS_TOO_LARGE, "adapter_bytes_max");
    assert_int_equal(kept_dirs(), 0);
}

/* A name belongs to its publisher; start-up adapters to the operator. */
static void test_ownership(void **state)
{
    char dir[256];
    struct errtext err = ERRTEXT_INIT;
    must((struct ask){.name = "m", .seed = 1});
    refused((struct ask){.name = "m", .key = "bob", .seed = 2, .replace = true}, STATUS_DENIED,
            "another publisher");
    refused((struct ask){.name = "m", .seed = 2}, STATUS_EXISTS, "replace");
    serves("m", 1, "alice");
    assert_int_equal(kept_dirs(), 1); /* a refused upload leaves nothing */
    assert_int_equal(restart(), 1);
    serves("m", 1, "alice");
    snprintf(dir, sizeof(dir), "%s/op", root_dir);
    write_adapter(dir, 5, 4);
    if (publisher_load_dir(publisher, "op", dir, true, false, &err))
        fail_msg("%s", err.text);
    refused((struct ask){.name = "op", .seed = 6, .replace = true}, STATUS_DENIED,
            "another publisher");
    /* forgetting an operator's adapter leaves his files alone */
    forget("op");
    struct peft_adapter a;
    assert_int_equal(peft_read_dir(&a, dir, NULL, &base, 1 << 20, NULL), STATUS_OK);
    peft_fini(&a);
}

/* Replacing moves the name; the old content's files go, and do not come back with a restart. */
static void test_replace(void **state)
{
    must((struct ask){.name = "m", .seed = 1});
    must((struct ask){.name = "m", .seed = 2, .replace = true});
    serves("m", 2, "alice");
    assert_int_equal(kept_dirs(), 1);
    assert_int_equal(restart(), 1);
    serves("m", 2, "alice");
    /* a crash between keeping the new and forgetting the old: the later one is the name's */
    must((struct ask){.name = "m", .seed = 1, .replace = true});
    char cmd[512], hex[65];
    uint8_t id[32];
    id_of(1, 4, id);
    hex_encode(hex, id, 32);
    snprintf(cmd, sizeof(cmd), "cp -r %s/%s %s/copy", adapters_dir, hex, test_dir);
    assert_int_equal(system(cmd), 0);
    sleep(1); /* times are in seconds */
    must((struct ask){.name = "m", .seed = 2, .replace = true});
    snprintf(cmd, sizeof(cmd), "mv %s/copy %s/%s", test_dir, adapters_dir, hex);
    assert_int_equal(system(cmd), 0);
    (void)restart();
    serves("m", 2, "alice");
    assert_int_equal(kept_dirs(), 1);
}

/* One content, two names, two publishers: neither can take or lose the other's. */
static void test_shared_content(void **state)
{
    must((struct ask){.name = "a", .seed = 1});
    must((struct ask){.name = "b", .key = "bob", .seed = 1});
    assert_int_equal(kept_dirs(), 1);
    assert_int_equal(restart(), 2);
    serves("a", 1, "alice");
    serves("b", 1, "bob");
    forget("b");
    serves("a", 1, "alice");
    assert_int_equal(restart(), 1);
    serves("a", 1, "alice");
    is_gone("b");
    forget("a");
    assert_int_equal(kept_dirs(), 0);
}

static void test_quota(void **state)
{
    size_t one;
    mem_free(adapter_tensors(1, 4, &one));
    options.publisher_bytes_max = 2 * one + one / 2;
    assert_int_equal(restart(), 0);
    must((struct ask){.name = "a", .seed = 1});
    must((struct ask){.name = "b", .seed = 2});
    refused((struct ask){.name = "c", .seed = 3}, STATUS_TOO_LARGE, "quota");
    must((struct ask){.name = "c", .key = "bob", .seed = 3});
    must((struct ask){.name = "b", .seed = 4, .replace = true}); /* what it replaces is free */
    forget("a");
    must((struct ask){.name = "d", .seed = 5});
    (void)restart();
    refused((struct ask){.name = "e", .seed = 6}, STATUS_TOO_LARGE, "quota"); /* counted again */
}

static void test_manifests(void **state)
{
    struct errtext err = ERRTEXT_INIT;
    must((struct ask){.name = "m", .seed = 1, .version = 2});
    struct adapter_entry *e = catalog_find(catalog, "m");
    assert_true(e->has_manifest);
    catalog_release(e);
    must((struct ask){.name = "m", .seed = 1, .version = 2}); /* the same again */
    refused((struct ask){.name = "m", .seed = 1, .version = 1}, STATUS_INVALID,
            "expected more than 2");
    refused((struct ask){.name = "m", .seed = 1}, STATUS_INVALID, "manifest: missing");
    must((struct ask){.name = "m", .seed = 1, .version = 3}); /* new terms, same content */
    refused((struct ask){.name = "m", .seed = 2, .version = 3, .replace = true}, STATUS_INVALID,
            "manifest.version");
    must((struct ask){.name = "m", .seed = 2, .version = 4, .replace = true});
    assert_int_equal(restart(), 1);
    e = catalog_find(catalog, "m");
    assert_true(e->has_manifest);
    assert_int_equal(e->manifest_version, 4);
    catalog_release(e);
    /* a manifest for other content, or signed by nobody */
    size_t len;
    char *config = adapter_config(4), *tensors = adapter_tensors(9, 4, &len);
    struct buf report;
    buf_init(&report, 1 << 16);
    json_t *wrong = make_manifest(8, 4, 1);
    struct publish_upload u = {.name = "w",
                               .key_name = "alice",
                               .config_json = config,
                               .config_bytes = strlen(config),
                               .tensors = tensors,
                               .tensor_bytes = len,
                               .manifest = wrong};
    assert_int_equal(publisher_upload(publisher, &u, &report, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "adapterId"));
    is_gone("w");
    assert_int_equal(kept_dirs(), 1);
    json_decref(wrong);
    buf_fini(&report);
    mem_free(config);
    mem_free(tensors);
}

/* Damaged or foreign folders are not served, and the rest is. */
static void test_recover_damage(void **state)
{
    char cmd[512], hex[65];
    uint8_t id[32];
    must((struct ask){.name = "good", .seed = 1});
    must((struct ask){.name = "cut", .seed = 2});
    must((struct ask){.name = "swapped", .seed = 3});
    id_of(2, 4, id);
    hex_encode(hex, id, 32);
    snprintf(cmd, sizeof(cmd), "truncate -s 50 %s/%s/adapter_model.safetensors", adapters_dir, hex);
    assert_int_equal(system(cmd), 0);
    id_of(3, 4, id);
    hex_encode(hex, id, 32);
    snprintf(cmd, sizeof(cmd), "%s/%s", adapters_dir, hex);
    write_adapter(cmd, 4, 4);
    snprintf(cmd, sizeof(cmd), "mkdir %s/%064d %s/other", adapters_dir, 7, adapters_dir);
    assert_int_equal(system(cmd), 0);
    assert_int_equal(restart(), 1);
    serves("good", 1, "alice");
    is_gone("cut");
    is_gone("swapped");
    assert_int_equal(kept_dirs(), 4); /* the empty one was swept */
}

static enum status load(const char *path, bool trusted, struct errtext *err)
{
    return publisher_load_dir(publisher, "n", path, trusted, true, err);
}

/* Paths and links that leave the roots. */
static void test_roots(void **state)
{
    char inside[256], outside[256], path[512], cmd[1024];
    struct errtext err = ERRTEXT_INIT;
    snprintf(inside, sizeof(inside), "%s/in", root_dir);
    snprintf(outside, sizeof(outside), "%s/rootless/out", test_dir); /* shares the root's prefix */
    write_adapter(inside, 1, 4);
    write_adapter(outside, 2, 4);
    if (load(inside, false, &err))
        fail_msg("%s", err.text);
    assert_int_equal(load(outside, false, &err), STATUS_DENIED);
    assert_non_null(strstr(err.text, "adapter_roots"));
    assert_string_equal(err.param, "lora_path");
    assert_int_equal(load(outside, true, NULL), STATUS_OK); /* the operator's own word */
    snprintf(path, sizeof(path), "%s/../rootless/out", root_dir);
    assert_int_equal(load(path, false, NULL), STATUS_DENIED);
    assert_int_equal(load("in", false, NULL), STATUS_INVALID);
    err_clear(&err);
    assert_int_equal(load("org/some-lora", false, &err), STATUS_INVALID);
    assert_non_null(strstr(err.text, "hf download"));
    assert_int_equal(load("/nowhere", false, NULL), STATUS_NOT_FOUND);
    /* a folder inside that is a link to outside */
    snprintf(cmd, sizeof(cmd), "ln -s %s %s/link", outside, root_dir);
    assert_int_equal(system(cmd), 0);
    snprintf(path, sizeof(path), "%s/link", root_dir);
    assert_int_equal(load(path, false, NULL), STATUS_DENIED);
    /* files inside that are links */
    static const char *const files[] = {"adapter_model.safetensors", "adapter_config.json",
                                        "publish.json"};
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        snprintf(path, sizeof(path), "%s/linked%zu", root_dir, i);
        write_adapter(path, 3, 4);
        snprintf(cmd, sizeof(cmd), "touch %s/publish.json; ln -sf %s/%s %s/%s", outside, outside,
                 files[i], path, files[i]);
        assert_int_equal(system(cmd), 0);
        err_clear(&err);
        assert_int_not_equal(load(path, false, &err), STATUS_OK);
        assert_non_null(strstr(err.text, "symbolic link"));
    }
    options.root[0] = "/nowhere/at/all";
    struct publisher *none;
    err_clear(&err);
    assert_int_equal(publisher_create(&none, &options, catalog, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.param, "adapter_roots");
}

static void refused_for(const char *name, const char *words)
{
    struct catalog_refusal r;
    if (!catalog_find_refusal(catalog, name, &r))
        fail_msg("%s is not refused", name);
    if (!strstr(r.why.text, words) || !strstr(r.why.text, name))
        fail_msg("%s: %s", name, r.why.text);
    is_gone(name);
}

/* Bad folders among good ones: each is refused by name, and the good ones are served. */
static void test_bad_among_good(void **state)
{
    char path[256], cmd[1024];
    uint32_t count;
    struct errtext err = ERRTEXT_INIT;
    static const char *const names[] = {"a", "cut", "dora", "half", "link", "big", "old~", "z"};
    for (uint32_t i = 0; i < ARRAY_COUNT(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", root_dir, names[i]);
        write_adapter(path, i, strcmp(names[i], "big") ? 4 : options.limits.rank_max + 1);
    }
    snprintf(cmd, sizeof(cmd),
             "cd %s && truncate -s -8 cut/adapter_model.safetensors && "
             "sed -i 's/{/{\"use_dora\":true,/' dora/adapter_config.json && "
             "rm half/adapter_config.json && "
             "ln -sf ../../gone link/adapter_config.json && mkdir .hidden notes && touch README.md",
             root_dir);
    assert_int_equal(system(cmd), 0);
    if (publisher_load_all(publisher, root_dir, false, &count, &err))
        fail_msg("%s", err.text);
    assert_int_equal(count, 2);
    assert_int_equal(catalog_refused_count(catalog), 6);
    serves("a", 0, "");
    serves("z", 7, "");
    refused_for("cut", "adapter_model.safetensors");
    refused_for("dora", "use_dora");
    refused_for("half", "adapter_config.json");
    refused_for("link", "symbolic link");
    refused_for("big", "adapter_rank_max");
    refused_for("old~", "A-Z a-z");
    assert_int_not_equal(publisher_load_all(publisher, root_dir, true, &count, &err), STATUS_OK);
    assert_non_null(strstr(err.text, "'big'")); /* strict: the first stops, in the order of names */
    /* mended and loaded at run time, it is not refused any more */
    snprintf(path, sizeof(path), "%s/half", root_dir);
    write_adapter(path, 3, 4);
    assert_int_equal(publisher_load_dir(publisher, "half", path, false, false, NULL), STATUS_OK);
    struct catalog_refusal r;
    assert_false(catalog_find_refusal(catalog, "half", &r));
    assert_int_equal(catalog_refused_count(catalog), 5);
}

static struct adapter_entry *load_with(const char *name, uint32_t seed, const char *file,
                                       const char *text)
{
    char path[256];
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/%s", root_dir, name);
    write_adapter(path, seed, 4);
    if (file)
        write_file(path, file, text, strlen(text));
    if (publisher_load_dir(publisher, name, path, true, true, &err))
        fail_msg("%s: %s", name, err.text);
    return catalog_find(catalog, name);
}

/* The template an adapter brings is its own; equal ones are one, the base's is none, and one that
 * cannot be used costs chat alone. */
static void test_own_template(void **state)
{
    static const char jinja[] = "chat_template.jinja", config[] = "tokenizer_config.json";
    options.chat_text = "base {{ messages }}";
    (void)restart();
    struct adapter_entry *none = load_with("none", 1, NULL, NULL),
                         *base_s = load_with("base-s", 2, jinja, options.chat_text),
                         *one = load_with("one", 3, jinja, "own {{ messages }}"),
                         *two = load_with("two", 4, config,
                                          "{\"chat_template\":\"own {{ messages }}\"}"),
                         *list =
                             load_with("list", 5, config,
                                       "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":"
                                       "\"t\"},{\"name\":\"default\",\"template\":\"d\"}]}"),
                         *bad = load_with("bad", 6, jinja, "{% if %}"),
                         *odd = load_with("odd", 7, config, "{");
    assert_null(none->chat);
    assert_null(base_s->chat);
    assert_ptr_equal(one->chat, two->chat);
    assert_non_null(one->chat->chat);
    assert_string_equal(list->chat->text, "d");
    assert_null(bad->chat->chat);
    assert_non_null(strstr(bad->chat->refusal, jinja));
    assert_non_null(strstr(bad->warning, "chat template cannot be used"));
    assert_non_null(strstr(odd->chat->refusal, config));
    struct adapter_entry *all[] = {none, base_s, one, two, list, bad, odd};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        catalog_release(all[i]);
    /* a link out of the folder is not another template's permission */
    char cmd[512];
    snprintf(cmd, sizeof(cmd), "ln -sf /etc/hostname %s/none/%s", root_dir, jinja);
    assert_int_equal(system(cmd), 0);
    none = load_with("none", 1, NULL, NULL);
    assert_non_null(strstr(none->chat->refusal, "symbolic link"));
    catalog_release(none);
    options.chat_text = NULL;
}

static void test_uploaded_template(void **state)
{
    refused((struct ask){.name = "m", .seed = 1, .chat_template = "{% if %}"}, STATUS_INVALID,
            "chat_template");
    must((struct ask){.name = "m", .seed = 1, .chat_template = "own {{ messages }}"});
    must((struct ask){.name = "n", .seed = 1}); /* the same content under a name without one */
    assert_int_equal(restart(), 2);
    struct adapter_entry *m = catalog_find(catalog, "m"), *n = catalog_find(catalog, "n");
    assert_string_equal(m->chat->text, "own {{ messages }}");
    assert_null(n->chat);
    catalog_release(m);
    catalog_release(n);
}

/* A folder of adapters, one of them with an operator's manifest; strict, a bad one stops and is
 * named. */
static void test_load_all(void **state)
{
    char path[256];
    uint32_t count;
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/one", root_dir);
    write_adapter(path, 1, 4);
    snprintf(path, sizeof(path), "%s/two", root_dir);
    write_adapter(path, 2, 4);
    static const char publish[] =
        "{\"version\":1,\"owner\":\"0x1111111111111111111111111111111111111111\",\"prices\":{"
        "\"in\":\"7\",\"out\":\"8\"},\"split\":[{\"payee\":"
        "\"0x2222222222222222222222222222222222222222\",\"role\":\"author\",\"bps\":10000}]}";
    write_file(path, "publish.json", publish, sizeof(publish) - 1);
    snprintf(path, sizeof(path), "%s/not-an-adapter", root_dir);
    assert_int_equal(mkdir(path, 0700), 0);
    if (publisher_load_all(publisher, root_dir, true, &count, &err))
        fail_msg("%s", err.text);
    assert_int_equal(count, 2);
    struct adapter_entry *e = catalog_find(catalog, "two");
    assert_false(e->has_manifest); /* unsigned */
    catalog_release(e);
    write_file(path, "adapter_config.json", "{", 1);
    assert_int_not_equal(publisher_load_all(publisher, root_dir, true, &count, &err), STATUS_OK);
    assert_non_null(strstr(err.text, "not-an-adapter"));
    assert_int_equal(publisher_load_all(publisher, "/nowhere", false, &count, NULL),
                     STATUS_NOT_FOUND);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_upload),       TEST(test_full_disk),         TEST(test_refused),
        TEST(test_ownership),    TEST(test_replace),           TEST(test_shared_content),
        TEST(test_quota),        TEST(test_manifests),         TEST(test_recover_damage),
        TEST(test_roots),        TEST(test_bad_among_good),    TEST(test_load_all),
        TEST(test_own_template), TEST(test_uploaded_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
