/* Which Unicode the tokenizer's classes and normal forms are of. */
#ifndef RS_TEXT_UNICODE_H
#define RS_TEXT_UNICODE_H

/* "pcre2 14.0.0 utf8proc 15.0.0": the versions of the tables of the libraries this process runs
 * with. A static text. Thread: any. */
const char *unicode_version(void);

#endif
