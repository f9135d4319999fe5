/* Lines go through the log, which keeps a line a line whatever a client put into a name. */
#include "server/http/audit.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/http/auth.h"
#include "server/http/route.h"
#include "server/http/state.h"

#include <stdio.h>

#define REFUSALS_PER_SECOND 10
#define FINGERPRINT_BYTES   4

void audit_init(struct audit_log *a)
{
    *a = (struct audit_log){.second = 0};
    CHECK(pthread_mutex_init(&a->lock, NULL) == 0);
}

void audit_fini(struct audit_log *a)
{
    pthread_mutex_destroy(&a->lock);
}

static void who(const struct exchange *x, char *out, size_t out_bytes)
{
    char mark[2 * FINGERPRINT_BYTES + 1];
    if (!x->key) {
        snprintf(out, out_bytes, "anyone (no keys) at %s", x->peer);
        return;
    }
    hex_encode(mark, x->key->digest, FINGERPRINT_BYTES);
    snprintf(out, out_bytes, "key '%s' (%s) at %s", x->key->name, mark, x->peer);
}

void audit_action(const struct exchange *x, const char *action, const char *name, enum status st,
                  const struct errtext *err)
{
    char by[160];
    who(x, by, sizeof(by));
    log_audit("http", "%s '%.128s' by %s: %s%s", action, name ? name : "", by,
              st ? "refused: " : "done", st ? err->text : "");
}

/* May one more line be written in this second? *left_out: how many were not, before it. */
static bool may_say(struct audit_log *a, uint64_t now_s, uint32_t *left_out)
{
    pthread_mutex_lock(&a->lock);
    if (now_s != a->second) {
        a->second = now_s;
        a->said = 0;
    }
    bool yes = a->said < REFUSALS_PER_SECOND;
    *left_out = yes ? a->left_out : 0;
    a->left_out = yes ? 0 : a->left_out + 1;
    a->said += yes;
    pthread_mutex_unlock(&a->lock);
    return yes;
}

void audit_refusal(const struct exchange *x, int code, const char *authorization,
                   const struct errtext *err)
{
    uint8_t digest[32];
    char mark[2 * FINGERPRINT_BYTES + 1] = "none", by[160], more[64] = "";
    uint32_t left_out;
    if (!may_say(&x->server->audit, x->arrive_wall_ms / 1000, &left_out))
        return;
    if (x->key) {
        who(x, by, sizeof(by));
    } else {
        if (auth_digest(authorization, digest, NULL) == STATUS_OK)
            hex_encode(mark, digest, FINGERPRINT_BYTES);
        snprintf(by, sizeof(by), "key %s at %s", mark, x->peer);
    }
    if (left_out)
        snprintf(more, sizeof(more), " (and %u refusals before it)", left_out);
    log_audit("http", "%s %.128s by %s: refused %d: %s%s", route_method_name(x->route->method),
              x->path, by, code, err->text, more);
}
