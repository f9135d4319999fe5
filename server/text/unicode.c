/* Both libraries carry tables of their own and both decide about ids: PCRE2 what a letter is,
 * utf8proc how text is composed. A host with other tables gives some strings other ids, so an
 * engine id that left this out would promise a replay that fails. The libraries are asked at run
 * time, since they are shared objects that a host may replace. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "server/text/unicode.h"

#include <pcre2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

static char version[96];
static pthread_once_t version_once = PTHREAD_ONCE_INIT;

static void version_ask(void)
{
    char pcre2[64] = "";
    int n = pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, NULL);
    if (n > 0 && (size_t)n <= sizeof(pcre2))
        pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, pcre2);
    snprintf(version, sizeof(version), "pcre2 %s utf8proc %s", pcre2, utf8proc_unicode_version());
}

enum status unicode_nfc(struct buf *out, const char *text, size_t len, struct errtext *err)
{
    utf8proc_uint8_t *mapped = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len,
                                      &mapped, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return err_set(err, n == UTF8PROC_ERROR_NOMEM ? STATUS_NO_MEMORY : STATUS_INVALID,
                       "the text cannot be normalised: %s", utf8proc_errmsg(n));
    buf_put(out, mapped, (size_t)n);
    free(mapped); /* lint: waive banned - utf8proc's memory */
    return out->failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a text of %zu bytes", len)
                       : STATUS_OK;
}

static bool is_word_part(utf8proc_int32_t cp)
{
    utf8proc_category_t c = utf8proc_category(cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NO) ||
           (c >= UTF8PROC_CATEGORY_SM && c <= UTF8PROC_CATEGORY_SO);
}

enum status unicode_words(struct buf *out, const char *text, size_t len, struct errtext *err)
{
    bool gap = false;
    size_t first = out->len;
    enum status st = STATUS_OK;
    utf8proc_uint8_t *mapped = NULL;
    utf8proc_ssize_t n =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len, &mapped,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT | UTF8PROC_CASEFOLD);
    if (n < 0)
        st = err_set(err, n == UTF8PROC_ERROR_NOMEM ? STATUS_NO_MEMORY : STATUS_INVALID,
                     "the text cannot be folded: %s", utf8proc_errmsg(n));
    for (utf8proc_ssize_t i = 0, step; i < n; i += step) {
        utf8proc_int32_t cp;
        step = utf8proc_iterate(mapped + i, n - i, &cp);
        if (step < 1)
            break;
        if (!is_word_part(cp)) {
            gap = true;
            continue;
        }
        if (gap && out->len > first)
            buf_putc(out, ' ');
        gap = false;
        buf_put(out, mapped + i, (size_t)step);
    }
    free(mapped); /* lint: waive banned - utf8proc's memory */
    return st || !out->failed
               ? st
               : err_set(err, STATUS_NO_MEMORY, "no memory for a text of %zu bytes", len);
}

const char *unicode_version(void)
{
    pthread_once(&version_once, version_ask);
    return version;
}
