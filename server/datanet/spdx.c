/* Which of the hundreds of identifiers exist is not asked: the list grows every quarter, and a
 * server that has an older one must not refuse what another takes. The syntax is held, so that a
 * sentence or an empty text cannot pass for a licence. */
#include "server/datanet/spdx.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define DEPTH_MAX 16

static size_t word_len(const char *s)
{
    return strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-+:");
}

static bool is_word(const char *s, size_t n, const char *word)
{
    return strlen(word) == n && memcmp(s, word, n) == 0;
}

static bool is_operator(const char *s, size_t n)
{
    return is_word(s, n, "AND") || is_word(s, n, "OR") || is_word(s, n, "WITH");
}

static bool is_identifier(const char *s, size_t n)
{
    const char *plus = memchr(s, '+', n);
    return n && isalnum((unsigned char)s[0]) && (!plus || plus == s + n - 1) &&
           !is_operator(s, n) && !is_word(s, n, "NONE") && !is_word(s, n, "NOASSERTION");
}

/* Identifiers and operators in turn, brackets around whole expressions. */
static bool is_expression(const char *s)
{
    uint32_t depth = 0;
    bool operand = true; /* one must come */
    for (; *s; s += *s == ' ') {
        size_t n = word_len(s);
        if (*s == ' ')
            continue;
        if (!n && ((*s == '(' && (!operand || ++depth > DEPTH_MAX)) ||
                   (*s == ')' && (operand || !depth--)) || (*s != '(' && *s != ')')))
            return false;
        if (n && (operand ? !is_identifier(s, n) : !is_operator(s, n)))
            return false;
        operand = n ? !operand : operand;
        s += n ? n : 1;
    }
    return !operand && !depth;
}

enum status spdx_check(const char *text, struct errtext *err)
{
    if (strlen(text) <= SPDX_BYTES_MAX && is_expression(text))
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, "licence",
                     "licence: found \"%.60s\", expected an SPDX licence such as CC-BY-4.0, "
                     "CC0-1.0, MIT or \"MIT OR Apache-2.0\" (https://spdx.org/licenses; "
                     "LicenseRef-NAME for one of your own, whose text --terms names)",
                     text);
}

enum status terms_check(const char *text, struct errtext *err)
{
    size_t len = strlen(text), scheme = 0;
    bool right = len <= TERMS_BYTES_MAX && (!len || isalpha((unsigned char)text[0]));
    while (scheme < len && (isalnum((unsigned char)text[scheme]) || strchr("+-.", text[scheme])))
        scheme++;
    right = right && (!len || (text[scheme] == ':' && text[scheme + 1]));
    for (size_t i = 0; right && i < len; i++)
        right = text[i] > ' ' && text[i] < 0x7f && !strchr("<>\"\\^`{|}", text[i]);
    return right ? STATUS_OK
                 : err_param(err, STATUS_INVALID, "terms",
                             "terms: found \"%.60s\", expected a URI such as "
                             "https://example.org/terms, or none",
                             text);
}
