/* The filters that work on sequences, for the table in filters.c. Each takes the piped value
 * and the arguments, and returns false after failing the run. */
#ifndef RS_TEXT_JINJA_FILTERS_H
#define RS_TEXT_JINJA_FILTERS_H

#include "server/text/jinja/run.h"

typedef bool jfilter(struct jrun *r, struct jval v, const struct jargs *args, struct jval *out);

jfilter jfilter_length, jfilter_join, jfilter_list, jfilter_items, jfilter_dictsort, jfilter_map,
    jfilter_select, jfilter_reject, jfilter_selectattr, jfilter_rejectattr, jfilter_first,
    jfilter_last, jfilter_unique, jfilter_sort, jfilter_sum, jfilter_min, jfilter_max,
    jfilter_reverse, jfilter_groupby, jfilter_attr;

#endif
