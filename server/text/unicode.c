/* Both libraries carry tables of their own and both decide about ids: PCRE2 what a letter is,
 * utf8proc how text is composed. A host with other tables gives some strings other ids, so an
 * engine id that left this out would promise a replay that fails. The libraries are asked at run
 * time, since they are shared objects that a host may replace. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "server/text/unicode.h"

#include <pcre2.h>
#include <pthread.h>
#include <stdio.h>
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

const char *unicode_version(void)
{
    pthread_once(&version_once, version_ask);
    return version;
}
