/* The line is put together in a buffer of its own and leaves in one write. What a client chose is
 * escaped as nginx does, \xHH, so that no request can forge a line. */
#include "server/http/access_log.h"
#include "server/base/buf.h"
#include "server/http/route.h"

#include <time.h>

#define LINE_BYTES_MAX 16384
#define FIELD_MAX      1024

/* least: 0x20 where blanks may stand, 0x21 where they end the field. */
static void put_field(struct buf *out, const char *text, unsigned char least)
{
    for (size_t i = 0; text[i] && i < FIELD_MAX; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < least || c > 0x7E || c == '"' || c == '\\')
            buf_printf(out, "\\x%02X", c);
        else
            buf_putc(out, (char)c);
    }
}

static void put_time(struct buf *out, uint64_t wall_ms)
{
    char text[40];
    time_t s = (time_t)(wall_ms / 1000);
    struct tm tm;
    gmtime_r(&s, &tm);
    strftime(text, sizeof(text), "%d/%b/%Y:%H:%M:%S +0000", &tm);
    buf_puts(out, text);
}

void access_log_write(const struct logfile *f, const struct exchange *x, const char *user_agent,
                      uint64_t ns)
{
    struct buf line;
    buf_init(&line, LINE_BYTES_MAX);
    buf_puts(&line, x->peer);
    buf_puts(&line, " - ");
    put_field(&line, x->key ? x->key->name : "-", 0x21);
    buf_puts(&line, " [");
    put_time(&line, x->arrive_wall_ms);
    buf_puts(&line, "] \"");
    put_field(&line, x->method, 0x21);
    buf_putc(&line, ' ');
    put_field(&line, x->path, 0x21);
    buf_printf(&line, " %s\" %d %llu \"-\" \"", x->version, x->code ? x->code : 499,
               (unsigned long long)x->sent_bytes);
    put_field(&line, user_agent ? user_agent : "-", 0x20);
    buf_printf(&line, "\" %.3f ", (double)ns * 1e-9);
    put_field(&line, x->request_id, 0x21);
    buf_putc(&line, '\n');
    if (!line.failed)
        logfile_write(f, line.data, line.len);
    buf_fini(&line);
}
