/*
 * The same as request.c with the interface of WASI 0.3, wasi:http/client; it prints by that of 0.2, which a program of 0.3 may
 * use as well.
 */
#define VERSION "0.3.0"
#define REQUEST "request"
#include "request.h"

TYPES("[static]request.new")
void request_new(int32_t fields, int32_t has_contents, int32_t contents, int32_t trailers, int32_t has_options, int32_t options,
                 int32_t *result);
/* Of the types of request.new the trailers are the second. The writable end is the upper half. */
TYPES("[future-new-1][static]request.new") int64_t trailers_new(void);
TYPES("[async-lower][future-write-1][static]request.new")
int32_t trailers_write(int32_t writable, const void *value);
/* Lowered as if it were not async: it waits. */
__attribute__((import_module("wasi:http/client@" VERSION), import_name("send")))
void client_send(int32_t request, uint8_t *result);
TYPES("[method]response.get-status-code") int32_t response_status(int32_t response);

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.3.0#run"))) int32_t run(void) {
    static const uint8_t no_trailers[64] __attribute__((aligned(8)));
    uint8_t result[64] __attribute__((aligned(8))) = {0};
    int32_t made[2], response;
    int64_t trailers = trailers_new();
    request_new(fields_new(), 0, 0, (int32_t)trailers, 0, 0, made);
    if (address(made[0]) != 0)
        return 1;
    /* Whoever sends the request reads it, or nobody does. */
    trailers_write((int32_t)(trailers >> 32), no_trailers);
    /* result<response, error-code>: an error-code is aligned to eight. */
    client_send(made[0], result);
    if (result[0] != 0)
        return tell("error", result[8]);
    memcpy(&response, result + 8, sizeof response);
    return tell("status", response_status(response));
}
