/* The mark is written over in place, alternately at two places, so that a crash in the middle of a
 * write leaves the turn before it; all its bytes exist from the beginning, so that a full disk does
 * not stand in its way. */
#include "server/base/file.h"
#include "server/spool/crc32c.h"
#include "server/spool/spool_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MARK_MAGIC 0x314D5352u /* "RSM1" */
#define MARK_BYTES 4096u
#define PLACE      2048u
#define TURN_BYTES 40u

static void put_turn(uint8_t out[TURN_BYTES], const struct spool_promise *p)
{
    spool_le_put(out, MARK_MAGIC, 4);
    spool_le_put(out + 4, p->turn, 8);
    spool_le_put(out + 12, p->used, 8);
    spool_le_put(out + 20, p->final, 8);
    spool_le_put(out + 28, p->first, 8);
    spool_le_put(out + 36, crc32c(0, out, 36), 4);
}

static bool get_turn(const uint8_t in[TURN_BYTES], struct spool_promise *p)
{
    *p = (struct spool_promise){.turn = spool_le_get(in + 4, 8),
                                .used = spool_le_get(in + 12, 8),
                                .final = spool_le_get(in + 20, 8),
                                .first = spool_le_get(in + 28, 8)};
    return spool_le_get(in, 4) == MARK_MAGIC && spool_le_get(in + 36, 4) == crc32c(0, in, 36);
}

enum status spool_mark_open(const char *dir, int *fd, struct spool_promise *p, struct errtext *err)
{
    char path[PATH_MAX];
    uint8_t data[MARK_BYTES];
    struct spool_promise other;
    *fd = -1;
    snprintf(path, sizeof(path), "%s/mark", dir);
    int mark = open(path, O_RDWR | O_CLOEXEC);
    if (mark < 0 && errno != ENOENT)
        return spool_io_error(path, "open", err);
    bool good = mark >= 0 && pread(mark, data, sizeof(data), 0) == (ssize_t)sizeof(data);
    bool has[2] = {good && get_turn(data, p), good && get_turn(data + PLACE, &other)};
    if (has[1] && (!has[0] || other.turn > p->turn))
        *p = other;
    if (has[0] || has[1]) {
        *fd = mark;
        return STATUS_OK;
    }
    if (mark >= 0)
        close(mark);
    *p = (struct spool_promise){.turn = 0};
    return err_set(err, STATUS_NOT_FOUND, "spool %s: %s", path,
                   mark < 0 ? "there is no such file" : "it is damaged");
}

enum status spool_mark_create(const char *dir, int *fd, struct spool_promise *p,
                              struct errtext *err)
{
    char path[PATH_MAX];
    uint8_t data[MARK_BYTES] = {0};
    p->turn = p->turn + 1;
    put_turn(data + (p->turn & 1) * PLACE, p);
    snprintf(path, sizeof(path), "%s/mark", dir);
    enum status st = file_write_atomic(path, data, sizeof(data), 0600, err);
    *fd = st ? -1 : open(path, O_RDWR | O_CLOEXEC);
    return st || *fd >= 0 ? st : spool_io_error(path, "open", err);
}

enum status spool_mark_write(const char *dir, int fd, struct spool_promise *p, struct errtext *err)
{
    uint8_t turn[TURN_BYTES];
    p->turn++;
    put_turn(turn, p);
    if (pwrite(fd, turn, sizeof(turn), (off_t)((p->turn & 1) * PLACE)) != (ssize_t)sizeof(turn) ||
        fdatasync(fd) != 0)
        return spool_io_error(dir, "write of the mark", err);
    return STATUS_OK;
}
