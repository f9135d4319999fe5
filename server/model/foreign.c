/* Each thing is known by a mark that nothing else carries: the first bytes of a file, or the name
 * of a file in the folder. */
#include "server/model/foreign.h"
#include "server/base/check.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char gguf[] =
    "a GGUF file, as llama.cpp reads them; take the model's safetensors files instead (the "
    "repository it was converted from)";

const char *foreign_bytes(const void *head, size_t len)
{
    static const struct {
        const char *mark;
        size_t mark_bytes;
        const char *what;
    } known[] = {
        {"version ", 8,
         "a Git LFS pointer, not the file itself; run 'git lfs pull' in the clone, or download the "
         "repository with 'hf download'"},
        {"GGUF", 4, gguf},
        {"PK\3\4", 4,
         "a zip archive (torch.save writes these: pickled weights run code when read and are "
         "refused); save the tensors as safetensors"},
        {"\x1f\x8b", 2, "a gzip archive; unpack it first"},
        {"<!DOCTYP", 8, "a web page, so the download failed; fetch the file again"},
        {"<!doctyp", 8, "a web page, so the download failed; fetch the file again"},
        {"<html", 5, "a web page, so the download failed; fetch the file again"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(known); i++) {
        if (len >= known[i].mark_bytes && memcmp(head, known[i].mark, known[i].mark_bytes) == 0)
            return known[i].what;
    }
    return NULL;
}

void foreign_quantised(const char *method, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes,
             "the checkpoint is quantised (%.40s): this server serves weights stored as bf16, f16 "
             "or f32 alone; take the model that it was quantised from, or write it back with "
             "dequantize() of transformers",
             method ? method : "method not named");
}

bool foreign_is_hub_id(const char *text)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t org = strspn(text, allowed);
    if (org == 0 || org > 96 || text[org] != '/' || text[0] == '.')
        return false;
    size_t name = strspn(text + org + 1, allowed);
    return name > 0 && name <= 96 && text[org + 1 + name] == '\0' && text[org + 1] != '.';
}

static bool has_file(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct stat sb;
    return (size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) < sizeof(path) &&
           lstat(path, &sb) == 0;
}

static int is_gguf(const struct dirent *d)
{
    size_t len = strlen(d->d_name);
    return len > 5 && strcmp(d->d_name + len - 5, ".gguf") == 0;
}

static int is_visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

/* The first name of a folder that `is` says yes to; "" if there is none. */
static void find_entry(const char *dir, int (*is)(const struct dirent *d), char name[NAME_MAX + 1])
{
    struct dirent **list;
    int n = scandir(dir, &list, is, alphasort);
    snprintf(name, NAME_MAX + 1, "%s", n > 0 ? list[0]->d_name : "");
    for (int i = 0; i < n; i++)
        free(list[i]); /* lint: waive banned - scandir's memory */
    if (n >= 0)
        free(list); /* lint: waive banned - scandir's memory */
}

static enum status tell(struct errtext *err, enum status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Another text than the one that is there. */
static enum status tell(struct errtext *err, enum status st, const char *fmt, ...)
{
    char text[sizeof(err->text)];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (err)
        err->text[0] = '\0'; /* the field at fault stays */
    return err_set(err, st, "%s", text);
}

static enum status tell_file(const char *path, const char *what, enum status st,
                             struct errtext *err)
{
    char head[16] = {0};
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(head, 1, sizeof(head), f) : 0;
    const char *is = foreign_bytes(head, n);
    if (f)
        fclose(f);
    return is ? tell(err, st, "%s", is) : tell(err, st, "a file; expected the folder of %s", what);
}

static enum status tell_model_folder(const char *dir, enum status st, struct errtext *err)
{
    char name[NAME_MAX + 1];
    find_entry(dir, is_gguf, name);
    if (name[0] && !has_file(dir, "model.safetensors") &&
        !has_file(dir, "model.safetensors.index.json"))
        return tell(err, st, "%s: %s", name, gguf);
    if (!has_file(dir, "config.json") && has_file(dir, "adapter_config.json"))
        return tell(err, st,
                    "an adapter, not a base model; give its base to --model and this folder to "
                    "--adapter NAME=DIR");
    return st;
}

static enum status tell_adapter_folder(const char *dir, enum status st, struct errtext *err)
{
    char name[NAME_MAX + 1];
    if (has_file(dir, "adapter_config.json") && has_file(dir, "adapter_model.safetensors"))
        return st;
    find_entry(dir, is_gguf, name);
    if (name[0])
        return tell(err, st, "%s: %s", name, gguf);
    if (!has_file(dir, "adapter_config.json") && has_file(dir, "config.json"))
        return tell(err, st, "a whole model, not an adapter; --model serves it");
    return st;
}

enum status foreign_folder(const char *dir, enum foreign_want want, enum status st,
                           struct errtext *err)
{
    bool model = want == FOREIGN_WANT_MODEL;
    const char *what = model ? "a base model (config.json, tokenizer.json, *.safetensors)"
                             : "an adapter (adapter_config.json, adapter_model.safetensors)";
    char sub[PATH_MAX], name[NAME_MAX + 1];
    struct stat sb;
    if (stat(dir, &sb) != 0 && errno == ENOENT && foreign_is_hub_id(dir))
        return tell(err, st,
                    "no such folder; if it is a name of the Hugging Face hub, download it first "
                    "(hf download %s --local-dir DIR) and give DIR",
                    dir);
    if (stat(dir, &sb) != 0)
        return tell(err, st, "%s; expected the folder of %s", strerror(errno), what);
    if (S_ISREG(sb.st_mode))
        return tell_file(dir, what, st, err);
    snprintf(sub, sizeof(sub), "%s/snapshots", dir);
    find_entry(sub, is_visible, name);
    if (name[0] && !has_file(dir, "config.json") && !has_file(dir, "adapter_config.json"))
        return tell(err, st,
                    "a repository of the Hugging Face cache; give its snapshot, such as %s/%s", sub,
                    name);
    return model ? tell_model_folder(dir, st, err) : tell_adapter_folder(dir, st, err);
}

enum status foreign_tokenizer(const char *dir, enum status st, struct errtext *err)
{
    static const char *const others[] = {"tokenizer.model", "vocab.json", "spiece.model",
                                         "tekken.json"};
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        if (has_file(dir, others[i]))
            return tell(err, st,
                        "tokenizer.json is missing and only %s is there; write it once with "
                        "transformers: python -c \"from transformers import AutoTokenizer; "
                        "AutoTokenizer.from_pretrained('%.200s').save_pretrained('%.200s')\"",
                        others[i], dir, dir);
    }
    return st;
}
