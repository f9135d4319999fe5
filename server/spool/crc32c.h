/* CRC-32C (Castagnoli, reflected 0x82F63B78), the checksum of spool frames. Pure. */
#ifndef RS_SPOOL_CRC32C_H
#define RS_SPOOL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* crc of data continued from crc (0 to start). */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

#endif
