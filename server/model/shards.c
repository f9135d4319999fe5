/* Opening rules: model.safetensors wins over the index, as in transformers. In a sharded model the
 * index and the shards must agree exactly: every mapped tensor is in its shard, every tensor of a
 * shard is mapped there, no name appears twice. Shard names are plain file names of the directory.
 * Pickled weights are refused. */
#include "server/model/shards.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

static enum status pread_exact(int fd, const char *name, uint64_t at, void *out, size_t bytes,
                               struct errtext *err)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, (char *)out + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, STATUS_IO, "%s: read: %s", name, strerror(errno));
        if (n == 0)
            return err_set(err, STATUS_CORRUPT,
                           "%s: shrank while it was read: it ends at byte %" PRIu64 ", %" PRIu64
                           " are needed",
                           name, at + done, at + bytes);
        done += (size_t)n;
    }
    return STATUS_OK;
}

static void stat_facts(const struct stat *sb, uint64_t *bytes, uint64_t *inode, int64_t *mtime_ns)
{
    *bytes = (uint64_t)sb->st_size;
    *inode = (uint64_t)sb->st_ino;
    *mtime_ns = (int64_t)sb->st_mtim.tv_sec * 1000000000 + sb->st_mtim.tv_nsec;
}

static enum status read_header(struct shard *s, struct errtext *err)
{
    uint8_t prefix[8] = {0};
    size_t first = s->bytes < 8 ? (size_t)s->bytes : 8;
    enum status st = pread_exact(s->fd, s->name, 0, prefix, first, err);
    if (st)
        return st;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | prefix[i];
    bool readable = first == 8 && n <= SHARD_HEADER_BYTES_MAX && n <= s->bytes - 8;
    size_t head_bytes = first + (readable ? (size_t)n : 0);
    uint8_t *head = mem_try_alloc(head_bytes);
    if (!head)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its header, %zu bytes", s->name,
                       head_bytes);
    st = pread_exact(s->fd, s->name, 0, head, head_bytes, err);
    if (!st) {
        st = safetensors_parse(&s->st, head, head_bytes, s->bytes, SHARD_HEADER_BYTES_MAX, err);
        if (st)
            err_prefix(err, "%s", s->name);
    }
    mem_free(head);
    return st;
}

static enum status open_shard(struct shard *s, const char *dir, const char *name,
                              struct errtext *err)
{
    char path[PATH_MAX];
    struct stat sb;
    s->fd = -1;
    s->name = mem_try_strndup(name, strlen(name));
    if (!s->name)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a file name");
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return err_set(err, STATUS_INVALID, "%s/%s: path too long", dir, name);
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: open: %s", path,
                       strerror(errno));
    if (fstat(s->fd, &sb) != 0)
        return err_set(err, STATUS_IO, "%s: stat: %s", path, strerror(errno));
    if (!S_ISREG(sb.st_mode))
        return err_set(err, STATUS_INVALID, "%s: not a regular file", path);
    stat_facts(&sb, &s->bytes, &s->inode, &s->mtime_ns);
    return read_header(s, err);
}

static struct shard *find_shard(struct shard_set *s, const char *name)
{
    for (uint32_t i = 0; i < s->shard_count; i++) {
        if (!strcmp(s->shard[i].name, name))
            return &s->shard[i];
    }
    return NULL;
}

static enum status add_shard(struct shard_set *s, const char *dir, const char *name,
                             struct errtext *err)
{
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/'))
        return err_set(err, STATUS_DENIED,
                       "%s: weight_map names '%.200s', expected a file of the model's folder",
                       index_name, name);
    if (s->shard_count == SHARDS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s: more than %d shards", index_name, SHARDS_MAX);
    s->shard[s->shard_count].fd = -1;
    return open_shard(&s->shard[s->shard_count++], dir, name, err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct shard_tensor *)a)->t->name,
                  ((const struct shard_tensor *)b)->t->name);
}

static enum status collect_tensors(struct shard_set *s, struct errtext *err)
{
    size_t count = 0;
    for (uint32_t i = 0; i < s->shard_count; i++)
        count += s->shard[i].st.tensor_count;
    s->tensor = mem_try_array(count, sizeof(*s->tensor));
    if (!s->tensor)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tensors", count);
    for (uint32_t i = 0; i < s->shard_count; i++) {
        struct shard *shard = &s->shard[i];
        for (size_t k = 0; k < shard->st.tensor_count; k++)
            s->tensor[s->tensor_count++] =
                (struct shard_tensor){.t = &shard->st.tensor[k], .shard = shard};
    }
    qsort(s->tensor, s->tensor_count, sizeof(*s->tensor), by_name);
    for (size_t i = 1; i < s->tensor_count; i++) {
        if (!by_name(&s->tensor[i - 1], &s->tensor[i]))
            return err_set(err, STATUS_CORRUPT, "tensor '%.200s' is in both %s and %s",
                           s->tensor[i].t->name, s->tensor[i - 1].shard->name,
                           s->tensor[i].shard->name);
    }
    return STATUS_OK;
}

static enum status check_index(struct shard_set *s, json_t *map, struct errtext *err)
{
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file)
    {
        struct shard_tensor *t = shard_set_find(s, name);
        if (!t || strcmp(t->shard->name, json_string_value(file)))
            return err_set(err, STATUS_CORRUPT,
                           "%s: weight_map puts tensor '%.200s' in %.200s, which does not hold it",
                           index_name, name, json_string_value(file));
    }
    for (size_t i = 0; i < s->tensor_count; i++) {
        if (!json_object_get(map, s->tensor[i].t->name))
            return err_set(err, STATUS_CORRUPT, "%s: tensor '%.200s' is missing from %s",
                           s->tensor[i].shard->name, s->tensor[i].t->name, index_name);
    }
    return STATUS_OK;
}

static enum status open_indexed(struct shard_set *s, const char *dir, json_t *root,
                                struct errtext *err)
{
    json_t *map = json_object_get(root, "weight_map");
    const char *name;
    json_t *file;
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_set(err, STATUS_INVALID, "%s: weight_map: expected an object of file names",
                       index_name);
    json_object_foreach(map, name, file)
    {
        if (!json_is_string(file))
            return err_set(err, STATUS_INVALID, "%s: weight_map.%.200s: expected a file name",
                           index_name, name);
        enum status st = STATUS_OK;
        if (!find_shard(s, json_string_value(file)))
            st = add_shard(s, dir, json_string_value(file), err);
        if (st)
            return st;
    }
    enum status st = collect_tensors(s, err);
    return st ? st : check_index(s, map, err);
}

static enum status open_index_file(struct shard_set *s, const char *dir, const char *path,
                                   struct errtext *err)
{
    json_t *root;
    enum status st = json_doc_load(&root, path, SHARD_INDEX_BYTES_MAX, 0, err);
    if (st)
        return st;
    st = open_indexed(s, dir, root, err);
    json_decref(root);
    return st;
}

enum status shard_set_open(struct shard_set *s, const char *dir, struct errtext *err)
{
    char single[PATH_MAX], index[PATH_MAX], pickle[PATH_MAX];
    memset(s, 0, sizeof(*s));
    if ((size_t)snprintf(single, sizeof(single), "%s/%s", dir, single_name) >= sizeof(single) ||
        (size_t)snprintf(index, sizeof(index), "%s/%s", dir, index_name) >= sizeof(index) ||
        (size_t)snprintf(pickle, sizeof(pickle), "%s/pytorch_model.bin", dir) >= sizeof(pickle))
        return err_set(err, STATUS_INVALID, "%s: path too long", dir);
    s->shard = mem_try_array(SHARDS_MAX, sizeof(*s->shard));
    if (!s->shard)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the list of shards");
    enum status st;
    if (file_exists(single)) {
        st = add_shard(s, dir, single_name, err);
        if (!st)
            st = collect_tensors(s, err);
    } else if (file_exists(index)) {
        st = open_index_file(s, dir, index, err);
    } else if (file_exists(pickle)) {
        st = err_set(err, STATUS_UNSUPPORTED,
                     "%s: pickled weights run code when read and are refused; convert them to "
                     "safetensors",
                     pickle);
    } else {
        st = err_set(err, STATUS_NOT_FOUND, "%s: neither %s nor %s is there", dir, single_name,
                     index_name);
    }
    if (st)
        shard_set_fini(s);
    return st;
}

void shard_set_close_fds(struct shard_set *s)
{
    for (uint32_t i = 0; i < s->shard_count; i++) {
        if (s->shard[i].fd >= 0)
            close(s->shard[i].fd);
        s->shard[i].fd = -1;
    }
}

void shard_set_fini(struct shard_set *s)
{
    shard_set_close_fds(s);
    for (uint32_t i = 0; i < s->shard_count; i++) {
        if (s->shard[i].map)
            munmap(s->shard[i].map, (size_t)s->shard[i].bytes);
        safetensors_fini(&s->shard[i].st);
        mem_free(s->shard[i].name);
    }
    mem_free(s->tensor);
    mem_free(s->shard);
    memset(s, 0, sizeof(*s));
}

struct shard_tensor *shard_set_find(struct shard_set *s, const char *name)
{
    struct st_tensor key_tensor = {.name = (char *)(uintptr_t)name};
    struct shard_tensor key = {.t = &key_tensor};
    return bsearch(&key, s->tensor, s->tensor_count, sizeof(*s->tensor), by_name);
}

enum status shard_read(const struct shard_tensor *t, uint64_t offset, void *out, size_t bytes,
                       struct errtext *err)
{
    return pread_exact(t->shard->fd, t->shard->name, t->t->begin + offset, out, bytes, err);
}

enum status shard_map(struct shard *s, struct errtext *err)
{
    if (s->map)
        return STATUS_OK;
    void *p = mmap(NULL, (size_t)s->bytes, PROT_READ, MAP_PRIVATE, s->fd, 0);
    if (p == MAP_FAILED)
        return err_set(err, STATUS_NO_MEMORY, "%s: map %" PRIu64 " bytes: %s", s->name, s->bytes,
                       strerror(errno));
    (void)madvise(p, (size_t)s->bytes, MADV_WILLNEED);
    s->map = p;
    return STATUS_OK;
}

enum status shard_set_verify(const struct shard_set *s, struct errtext *err)
{
    for (uint32_t i = 0; i < s->shard_count; i++) {
        const struct shard *shard = &s->shard[i];
        struct stat sb;
        uint64_t bytes, inode;
        int64_t mtime_ns;
        if (fstat(shard->fd, &sb) != 0)
            return err_set(err, STATUS_IO, "%s: stat: %s", shard->name, strerror(errno));
        stat_facts(&sb, &bytes, &inode, &mtime_ns);
        if (bytes != shard->bytes)
            return err_set(err, STATUS_CORRUPT,
                           "%s: changed while it was read: %" PRIu64
                           " bytes at first, now %" PRIu64,
                           shard->name, shard->bytes, bytes);
        if (inode != shard->inode || mtime_ns != shard->mtime_ns)
            return err_set(err, STATUS_CORRUPT, "%s: was written to while it was read",
                           shard->name);
    }
    return STATUS_OK;
}
