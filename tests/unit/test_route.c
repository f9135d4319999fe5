#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "server/http/openapi.h"
#include "server/http/route.h"
#include "tests/unit/http_double.h"

static void test_paths_and_tails(void **state)
{
    const char *tail, *allow;
    (void)state;
    assert_non_null(route_find(HTTP_POST, "/v1/completions", &tail, &allow));
    assert_string_equal(tail, "");
    assert_non_null(route_find(HTTP_GET, "/v1/models/org/name", &tail, &allow));
    assert_string_equal(tail, "org/name");
    assert_null(route_find(HTTP_GET, "/v1/models/", &tail, &allow));
    assert_null(allow);
    assert_null(route_find(HTTP_GET, "/v1/completionsx", &tail, &allow));
    assert_null(route_find(HTTP_GET, "", &tail, &allow));
    assert_non_null(route_find(HTTP_GET, "/", &tail, &allow));
    assert_null(route_find(HTTP_GET, "/x", &tail, &allow));
}

static void test_a_wrong_method_names_the_right_ones(void **state)
{
    const char *tail, *allow;
    (void)state;
    assert_null(route_find(HTTP_GET, "/v1/completions", &tail, &allow));
    assert_string_equal(allow, "POST, OPTIONS");
    assert_null(route_find(HTTP_DELETE, "/v1/adapters", &tail, &allow));
    assert_string_equal(allow, "GET, HEAD, POST, OPTIONS");
    assert_int_equal(route_method("HEAD"), HTTP_GET);
    assert_int_equal(route_method("BREW"), HTTP_METHOD_OTHER);
    for (uint32_t i = 0; i < route_count(); i++) { /* every path's methods have a text */
        char path[128];
        snprintf(path, sizeof(path), "%s%s", route_at(i)->path,
                 route_is_prefix(route_at(i)) ? "x" : "");
        assert_null(route_find(HTTP_METHOD_OTHER, path, &tail, &allow));
        assert_non_null(allow);
        assert_string_not_equal(allow, "OPTIONS");
    }
}

/* The operation of openapi.json for a route, or NULL. */
static const json_t *operation(const json_t *doc, const struct route *r)
{
    const char *path;
    json_t *item;
    char method[16] = "";
    size_t len = strlen(r->path);
    for (size_t i = 0; route_method_name(r->method)[i]; i++)
        method[i] = (char)tolower((unsigned char)route_method_name(r->method)[i]);
    json_object_foreach(json_object_get(doc, "paths"), path, item)
    {
        bool same = route_is_prefix(r) ? strncmp(path, r->path, len) == 0 && path[len] == '{'
                                       : strcmp(path, r->path) == 0;
        if (same && json_object_get(item, method))
            return json_object_get(item, method);
    }
    return NULL;
}

static void test_openapi_describes_every_route_and_no_other(void **state)
{
    json_error_t e;
    const char *path, *method, *tail, *allow;
    json_t *item, *op_item;
    json_t *doc = json_loadb(openapi_json, openapi_json_bytes, JSON_REJECT_DUPLICATES, &e);
    (void)state;
    assert_non_null(doc);
    for (uint32_t i = 0; i < route_count(); i++) {
        const json_t *op = operation(doc, route_at(i));
        if (!op)
            fail_msg("openapi.json lacks %s", route_at(i)->path);
        size_t roles = json_array_size(json_object_get(op, "x-roles"));
        assert_int_equal(roles, __builtin_popcount(route_at(i)->roles));
        assert_int_equal(json_array_size(json_object_get(op, "security")), roles > 0);
    }
    json_object_foreach(json_object_get(doc, "paths"), path, item)
    {
        json_object_foreach(item, method, op_item)
        {
            char upper[16] = "";
            for (size_t i = 0; method[i] && i < sizeof(upper) - 1; i++)
                upper[i] = (char)toupper((unsigned char)method[i]);
            if (!route_find(route_method(upper), path, &tail, &allow))
                fail_msg("there is no %s %s", upper, path);
        }
    }
    json_decref(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths_and_tails),
        cmocka_unit_test(test_a_wrong_method_names_the_right_ones),
        cmocka_unit_test(test_openapi_describes_every_route_and_no_other)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
