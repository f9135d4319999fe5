/* Byte by byte: append to the tail, then compare each stop string with the tail's end. At most 16
 * strings and one memcmp per string whose last byte agrees: nanoseconds beside a token's cost. */
#include "server/engine/stop.h"
#include "server/base/check.h"

#include <string.h>

void stop_init(struct stop_match *m)
{
    m->bytes = 0;
    m->tail_bytes = 0;
}

static void tail_append(struct stop_match *m, char c)
{
    if (m->tail_bytes == sizeof(m->tail)) {
        memmove(m->tail, m->tail + 1, sizeof(m->tail) - 1);
        m->tail_bytes--;
    }
    m->tail[m->tail_bytes++] = c;
    m->bytes++;
}

static bool ends_with(const struct stop_match *m, const struct request_stop *s)
{
    return s->len > 0 && s->len <= m->tail_bytes &&
           memcmp(m->tail + m->tail_bytes - s->len, s->text, s->len) == 0;
}

/* The longest stop string that ends here; of equal ones the first. */
static bool longest_end(const struct stop_match *m, const struct request_stop *stop,
                        uint32_t stop_count, struct stop_hit *hit)
{
    uint32_t best_len = 0;
    for (uint32_t k = 0; k < stop_count; k++) {
        VERIFY(stop[k].len <= REQUEST_STOP_BYTES_MAX);
        if (stop[k].len > best_len && ends_with(m, &stop[k])) {
            best_len = stop[k].len;
            *hit = (struct stop_hit){.index = k, .begin = m->bytes - stop[k].len};
        }
    }
    return best_len > 0;
}

bool stop_feed(struct stop_match *m, const struct request_stop *stop, uint32_t stop_count,
               const char *data, size_t len, struct stop_hit *hit)
{
    for (size_t i = 0; i < len; i++) {
        tail_append(m, data[i]);
        if (longest_end(m, stop, stop_count, hit))
            return true;
    }
    return false;
}

uint32_t stop_hold(const char *text, size_t len, const struct request_stop *stop,
                   uint32_t stop_count)
{
    uint32_t hold = 0;
    for (uint32_t k = 0; k < stop_count; k++) {
        uint32_t longest = stop[k].len ? (uint32_t)MIN(stop[k].len - 1, len) : 0;
        for (uint32_t n = longest; n > hold; n--) {
            if (memcmp(text + len - n, stop[k].text, n) == 0) {
                hold = n;
                break;
            }
        }
    }
    return hold;
}

void stop_search_init(struct stop_search *s, const struct tokenizer *t, bool show_special)
{
    detok_init_continued(&s->detok, t, !show_special);
    stop_init(&s->match);
}

bool stop_search_feed(struct stop_search *s, const struct request_params *p, int32_t id,
                      bool may_end, struct buf *scratch, struct stop_hit *hit)
{
    buf_clear(scratch);
    detok_step(&s->detok, id, scratch);
    CHECK(!scratch->failed);
    if (s->detok.taken > 0)
        s->match = s->before_run;
    else if (s->detok.run == 1 && detok_is_byte(&s->detok, id))
        s->before_run = s->match;
    return stop_feed(&s->match, p->stop, may_end ? p->stop_count : 0,
                     scratch->data ? scratch->data : "", scratch->len, hit);
}
