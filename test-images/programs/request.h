/*
 * A GET / for either version of wasi:http, and what came of it on stdout. VERSION is the interface's, REQUEST the name of its
 * resource.
 *
 *   http|https AUTHORITY    "status 200", or "error 12", the number of the error-code in its order
 */
#include "print.h"

#define TYPES(name) __attribute__((import_module("wasi:http/types@" VERSION), import_name(name)))
#define SETTER(name) TYPES("[method]" REQUEST ".set-" name)

IMPORT("wasi:cli/environment", "get-arguments") void get_arguments(uint32_t *list);
TYPES("[constructor]fields") int32_t fields_new(void);
SETTER("scheme") int32_t set_scheme(int32_t request, int32_t some, int32_t scheme, const char *start, size_t length);
SETTER("authority") int32_t set_authority(int32_t request, int32_t some, const char *start, size_t length);
SETTER("path-with-query") int32_t set_path(int32_t request, int32_t some, const char *start, size_t length);

/* Has the request go where the arguments say; 0 is ok. */
static int32_t address(int32_t request) {
    uint32_t list[2];
    get_arguments(list);
    struct text *arguments = (void *)list[0];
    if (list[1] != 3)
        return 1;
    if (set_scheme(request, 1, arguments[1].length == 5, NULL, 0) != 0)
        return 1;
    if (set_path(request, 1, "/", 1) != 0)
        return 1;
    return set_authority(request, 1, arguments[2].start, arguments[2].length) != 0;
}

/* A word and a number up to 999: what a run that succeeds ends with. */
static int32_t tell(const char *what, int number) {
    char line[32];
    size_t length = strlen(what);
    memcpy(line, what, length);
    line[length++] = ' ';
    for (int unit = 100; unit > 0; unit /= 10)
        if (number >= unit || unit == 1)
            line[length++] = (char)('0' + number / unit % 10);
    print(line, length);
    return 0;
}
