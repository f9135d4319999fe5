/* A program's settings: one table of keys that the command line, the JSON file and --help share.
 *
 *   defaults  <  --config FILE  <  flags       later wins, wherever --config stands
 *
 * A flag is a key with dashes or underscores: --rows-max 64, --rows-max=64. Numbers take k, m, g, t
 * (binary multiples). Unknown keys and flags are refused by name; errors name the key, the found
 * and the expected value. Secrets are only *_file keys. Every program of ours with a config file
 * reads it here, so suffixes, wording and precedence are the same. */
#ifndef RS_BASE_OPTIONS_H
#define RS_BASE_OPTIONS_H

#include "server/base/errtext.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OPTIONS_LIST_MAX 4096 /* entries of one list */

/* kind             field of the caller's struct     in the file            as a flag
 * OPTION_TEXT      char *                           string                 --key VALUE
 * OPTION_NUMBER    uint64_t                         integer or string      --key VALUE
 * OPTION_BUDGET    uint64_t, see budget_bytes       the same, or "N%"      --key VALUE
 * OPTION_BOOL      bool                             true, false            --key [true|false]
 * OPTION_LIST      struct option_list               string or array        --key VALUE, repeated
 * OPTION_CUSTOM    what `custom` says               string or array        --key VALUE, repeated
 * OPTION_JSON      json_t *, an array               array                  --key JSON
 * OPTION_SWITCH    bool                             refused                --key
 * OPTION_WORD      char *                           refused                the next word */
enum option_kind {
    OPTION_TEXT,
    OPTION_NUMBER,
    OPTION_BUDGET,
    OPTION_BOOL,
    OPTION_LIST,
    OPTION_CUSTOM,
    OPTION_JSON,
    OPTION_SWITCH,
    OPTION_WORD
};

struct option_list { /* of strings, owned */
    char **item;
    uint32_t count;
};

struct option_row;
struct option_custom {
    enum status (*add)(void *field, const struct option_row *row, const char *value,
                       struct errtext *err);
    void (*fini)(void *field);
};

struct option_row {
    const char *name;
    enum option_kind kind;
    size_t offset;
    uint64_t least, most, standard;
    const char *text_standard, *unit, *help;
    const struct option_custom *custom;
};

/* Rows: T is the caller's struct, the field's name is the key's. */
#define OPTION_ROW_TEXT(T, f, standard, unit, help)                                                \
    {                                                                                              \
#f, OPTION_TEXT, offsetof(T, f), 0, 0, 0, standard, unit, help, NULL                       \
    }
#define OPTION_ROW_NUMBER(T, f, least, most, standard, unit, help)                                 \
    {                                                                                              \
#f, OPTION_NUMBER, offsetof(T, f), least, most, standard, NULL, unit, help, NULL           \
    }
#define OPTION_ROW_BUDGET(T, f, least, standard, help)                                             \
    {                                                                                              \
#f, OPTION_BUDGET, offsetof(T, f), least, 1ull << 44, standard, NULL, "bytes|N%", help,    \
            NULL                                                                                   \
    }
#define OPTION_ROW_BOOL(T, f, standard, help)                                                      \
    {                                                                                              \
#f, OPTION_BOOL, offsetof(T, f), 0, 1, standard, NULL, "true|false", help, NULL            \
    }
#define OPTION_ROW_LIST(T, f, unit, help)                                                          \
    {                                                                                              \
#f, OPTION_LIST, offsetof(T, f), 0, 0, 0, NULL, unit, help, NULL                           \
    }
#define OPTION_ROW_CUSTOM(T, f, custom, unit, help)                                                \
    {                                                                                              \
#f, OPTION_CUSTOM, offsetof(T, f), 0, 0, 0, NULL, unit, help, custom                       \
    }
#define OPTION_ROW_JSON(T, f, help)                                                                \
    {                                                                                              \
#f, OPTION_JSON, offsetof(T, f), 0, 0, 0, NULL, "JSON", help, NULL                         \
    }
#define OPTION_ROW_SWITCH(T, f, help)                                                              \
    {                                                                                              \
#f, OPTION_SWITCH, offsetof(T, f), 0, 1, 0, NULL, "", help, NULL                           \
    }
#define OPTION_ROW_WORD(T, f, standard)                                                            \
    {                                                                                              \
#f, OPTION_WORD, offsetof(T, f), 0, 0, 0, standard, "", "", NULL                           \
    }

/* A name that users of another program know: its refusal says what ours is called. */
struct option_alias {
    const char *theirs, *ours;
};

struct options {
    const struct option_row *row;
    size_t row_count;
    const struct option_alias *alias;
    size_t alias_count;
    const char *usage, *notes; /* of --help: before the keys, after them */
};

/* options_load - set every default in *out (a zeroed struct), then the files, then the flags of
 * argv[1..]. On an error *out is still good for options_fini. -h is --help. */
MUST_CHECK enum status options_load(const struct options *t, void *out, int argc, char **argv,
                                    struct errtext *err);
void options_fini(const struct options *t, void *out);
/* --help, on stdout: every key with unit, meaning and default. */
void options_print_help(const struct options *t);

/* A budget: bytes, or a percentage of a whole that is known only later. */
#define BUDGET_PERCENT (1ull << 63) /* | 1 .. 100 */
static inline bool budget_is_percent(uint64_t budget)
{
    return (budget & BUDGET_PERCENT) != 0;
}
static inline uint64_t budget_bytes(uint64_t budget, uint64_t whole)
{
    return budget_is_percent(budget) ? whole / 100 * (budget & ~BUDGET_PERCENT) : budget;
}

#endif
