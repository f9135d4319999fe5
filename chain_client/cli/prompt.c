/* The terminal's echo is switched off for one line and back on whatever happens to that line. The
 * text is read into the caller's array only, so that one wipe ends it. */
#include "chain_client/cli/prompt.h"
#include "chain_client/eth/keystore.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define LEAST_CHARS        10
#define KEY_FILE_BYTES_MAX 16384

/* One line of stdin without its end; false at the end of input or when it is too long. */
static bool read_line(char out[PROMPT_BYTES_MAX])
{
    size_t len = 0;
    char c;
    while (read(STDIN_FILENO, &c, 1) == 1 && c != '\n') {
        if (len + 1 == PROMPT_BYTES_MAX)
            return false;
        out[len++] = c;
    }
    out[len] = '\0';
    return len > 0;
}

static enum status ask(char out[PROMPT_BYTES_MAX], const char *question, struct errtext *err)
{
    struct termios loud, quiet;
    if (tcgetattr(STDIN_FILENO, &loud) != 0)
        return err_set(err, STATUS_INVALID,
                       "no terminal to ask for the passphrase: give --passphrase-file FILE");
    quiet = loud;
    quiet.c_lflag &= (tcflag_t) ~(unsigned)ECHO;
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet);
    fprintf(stderr, "%s: ", question);
    fflush(stderr);
    bool good = read_line(out);
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &loud);
    fputc('\n', stderr);
    return good ? STATUS_OK : err_set(err, STATUS_INVALID, "no passphrase was given");
}

static enum status from_file(char out[PROMPT_BYTES_MAX], const char *path, struct errtext *err)
{
    char *text;
    size_t len;
    enum status st = file_read_secret(path, PROMPT_BYTES_MAX - 1, &text, &len, err);
    if (st)
        return st;
    memcpy(out, text, len);
    out[len] = '\0';
    mem_wipe(text, len);
    mem_free(text);
    return STATUS_OK;
}

static enum status ask_twice(char out[PROMPT_BYTES_MAX], struct errtext *err)
{
    char again[PROMPT_BYTES_MAX] = "";
    enum status st = ask(out, "Passphrase for the new key", err);
    if (!st && strlen(out) >= LEAST_CHARS)
        st = ask(again, "The same again", err);
    if (!st && again[0] && strcmp(out, again) != 0)
        st = err_set(err, STATUS_INVALID, "the two passphrases differ; nothing was written");
    mem_wipe(again, sizeof(again));
    return st;
}

enum status prompt_new_passphrase(char out[PROMPT_BYTES_MAX], const struct cli *c,
                                  enum cli_option o, struct errtext *err)
{
    enum status st = cli_has(c, o) ? from_file(out, c->value[o], err) : ask_twice(out, err);
    if (!st && strlen(out) < LEAST_CHARS)
        st = err_set(err, STATUS_INVALID,
                     "the passphrase has %zu characters, at least %d are wanted", strlen(out),
                     LEAST_CHARS);
    return st;
}

/* Is the key file one that needs a passphrase? */
static bool is_sealed(const char *path)
{
    char *text;
    size_t len;
    if (file_read(path, KEY_FILE_BYTES_MAX, &text, &len, NULL))
        return false;
    size_t at = 0;
    while (at < len && strchr(" \t\r\n", text[at]))
        at++;
    bool sealed = at < len && text[at] == '{';
    mem_wipe(text, len);
    mem_free(text);
    return sealed;
}

enum status prompt_load_key(const struct secp *secp, struct secp_key *key, const struct cli *c,
                            struct errtext *err)
{
    const char *path = c->value[OPT_KEY_FILE], *file = c->value[OPT_PASSPHRASE_FILE];
    char passphrase[PROMPT_BYTES_MAX] = "";
    if (file || !isatty(STDIN_FILENO) || !is_sealed(path))
        return keystore_load(secp, key, path, file, err);
    enum status st = ask(passphrase, "Passphrase of the key file", err);
    if (!st)
        st = keystore_load_sealed(secp, key, path, passphrase, err);
    mem_wipe(passphrase, sizeof(passphrase));
    return st;
}
