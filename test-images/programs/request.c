/*
 * A command of WASI 0.2 that sends a request, GET / by wasi:http/outgoing-handler, and prints what came of it:
 *
 *   http|https AUTHORITY    "status 200", or "error 12", the number of the error-code in its order
 */
#include "print.h"

IMPORT("wasi:cli/environment", "get-arguments") void get_arguments(uint32_t *list);
IMPORT("wasi:io/poll", "[method]pollable.block") void pollable_block(int32_t pollable);
IMPORT("wasi:io/poll", "[resource-drop]pollable") void pollable_drop(int32_t pollable);
IMPORT("wasi:http/types", "[constructor]fields") int32_t fields_new(void);
IMPORT("wasi:http/types", "[constructor]outgoing-request") int32_t request_new(int32_t fields);
IMPORT("wasi:http/types", "[method]outgoing-request.set-scheme")
int32_t set_scheme(int32_t request, int32_t some, int32_t scheme, const char *start, size_t length);
IMPORT("wasi:http/types", "[method]outgoing-request.set-authority")
int32_t set_authority(int32_t request, int32_t some, const char *start, size_t length);
IMPORT("wasi:http/types", "[method]outgoing-request.set-path-with-query")
int32_t set_path(int32_t request, int32_t some, const char *start, size_t length);
IMPORT("wasi:http/outgoing-handler", "handle")
void handle(int32_t request, int32_t some, int32_t options, uint8_t *result);
IMPORT("wasi:http/types", "[method]future-incoming-response.subscribe") int32_t response_subscribe(int32_t response);
IMPORT("wasi:http/types", "[method]future-incoming-response.get") void response_get(int32_t response, uint8_t *option);
IMPORT("wasi:http/types", "[method]incoming-response.status") int32_t response_status(int32_t response);

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run(void) {
    uint8_t result[128] __attribute__((aligned(8))) = {0};
    uint32_t list[2];
    int32_t response;
    get_arguments(list);
    struct text *arguments = (void *)list[0];
    if (list[1] != 3)
        return 1;
    int32_t request = request_new(fields_new());
    if (set_scheme(request, 1, arguments[1].length == 5, NULL, 0) != 0)
        return 1;
    if (set_path(request, 1, "/", 1) != 0)
        return 1;
    if (set_authority(request, 1, arguments[2].start, arguments[2].length) != 0)
        return 1;
    /* result<future, error-code>: an error-code is aligned to eight. */
    handle(request, 0, 0, result);
    if (result[0] != 0)
        return tell("error", result[8]);
    memcpy(&response, result + 8, sizeof response);
    int32_t pollable = response_subscribe(response);
    pollable_block(pollable);
    pollable_drop(pollable);
    /* option<result<result<response, error-code>>>, each behind its discriminant at 0, 8 and 16. */
    response_get(response, result);
    if (result[0] != 1 || result[8] != 0)
        return 1;
    if (result[16] != 0)
        return tell("error", result[24]);
    memcpy(&response, result + 24, sizeof response);
    return tell("status", response_status(response));
}
