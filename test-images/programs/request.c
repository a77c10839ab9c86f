/* A command of WASI 0.2 that sends a request by wasi:http/outgoing-handler. */
#define VERSION "0.2.0"
#define REQUEST "outgoing-request"
#include "request.h"

IMPORT("wasi:io/poll", "[method]pollable.block") void pollable_block(int32_t pollable);
IMPORT("wasi:io/poll", "[resource-drop]pollable") void pollable_drop(int32_t pollable);
TYPES("[constructor]outgoing-request") int32_t request_new(int32_t fields);
IMPORT("wasi:http/outgoing-handler", "handle")
void handle(int32_t request, int32_t some, int32_t options, uint8_t *result);
TYPES("[method]future-incoming-response.subscribe") int32_t response_subscribe(int32_t response);
TYPES("[method]future-incoming-response.get") void response_get(int32_t response, uint8_t *option);
TYPES("[method]incoming-response.status") int32_t response_status(int32_t response);

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run(void) {
    uint8_t result[128] __attribute__((aligned(8))) = {0};
    int32_t response, request = request_new(fields_new());
    if (address(request) != 0)
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
