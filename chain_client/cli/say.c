/* How verbs speak: facts on stdout, progress and errors on stderr; with --json also an error is an
 * object on stdout, so that a script reads one stream. */
#include "chain_client/cli/cli.h"
#include "chain_client/eth/addr.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int cli_exit_code(enum status st)
{
    switch (st) {
    case STATUS_OK:
        return CLI_FINE;
    case STATUS_CORRUPT:
        return CLI_WRONG;
    case STATUS_NOT_FOUND:
        return CLI_NOTHING;
    case STATUS_IO:
    case STATUS_TIMEOUT:
    case STATUS_BUSY:
    case STATUS_FULL:
    case STATUS_NO_MEMORY:
    case STATUS_CANCELLED:
        return CLI_OUTAGE;
    case STATUS_DENIED:
    case STATUS_EXISTS:
    case STATUS_CONFLICT:
        return CLI_REFUSED;
    default:
        return CLI_USAGE;
    }
}

int cli_fail(const struct cli *c, enum status st, const struct errtext *err, const char *hint)
{
    const char *words = c->verb ? c->verb->words : "";
    if (cli_has(c, OPT_JSON)) {
        struct buf out;
        buf_init(&out, 1u << 14);
        buf_puts(&out, "{\"ok\":false,\"error\":{\"status\":");
        buf_put_json_string(&out, status_name(st), strlen(status_name(st)));
        buf_puts(&out, ",\"message\":");
        buf_put_json_string(&out, err->text, strlen(err->text));
        if (hint) {
            buf_puts(&out, ",\"hint\":");
            buf_put_json_string(&out, hint, strlen(hint));
        }
        buf_puts(&out, "}}");
        (void)cli_print(&out, CLI_FINE);
        buf_fini(&out);
    }
    fflush(stdout);
    fprintf(stderr, "residual%s%s: %s\n", *words ? " " : "", words, err->text);
    if (hint)
        fprintf(stderr, "%s\n", hint);
    return cli_exit_code(st);
}

void cli_note(const struct cli *c, const char *fmt, ...)
{
    va_list ap;
    if (cli_has(c, OPT_JSON))
        return;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void cli_amount(char out[CLI_AMOUNT_BYTES], u128 v)
{
    static const u128 one = (u128)1000000000000000000u;
    char whole[40], units[40], fraction[24];
    u128_format(whole, v / one);
    u128_format(units, v);
    snprintf(fraction, sizeof(fraction), "%018" PRIu64, (uint64_t)(v % one));
    size_t len = strlen(fraction);
    while (len > 1 && fraction[len - 1] == '0')
        len--;
    snprintf(out, CLI_AMOUNT_BYTES, "%s.%.*s (%s base units)", whole, (int)len, fraction, units);
}

int cli_print(const struct buf *out, int code)
{
    if (out->failed || fwrite(out->data, 1, out->len, stdout) != out->len || putchar('\n') == EOF ||
        fflush(stdout) != 0) {
        fprintf(stderr, "residual: the result could not be written\n");
        return CLI_OUTAGE;
    }
    return code;
}

void cli_put_amount(struct buf *out, const char *key, u128 v)
{
    char text[40];
    u128_format(text, v);
    buf_printf(out, "\"%s\":\"%s\"", key, text);
}

void cli_put_json_address(struct buf *out, const char *key, const uint8_t address[20])
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, address);
    buf_printf(out, "\"%s\":\"%s\"", key, text);
}
