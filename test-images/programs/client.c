/*
 * The same as request.c with the interface of WASI 0.3, wasi:http/client; it prints by that of 0.2, which a program of 0.3 may
 * use as well.
 */
#include "print.h"

#define NEWER(module, name) __attribute__((import_module(module "@0.3.0"), import_name(name)))

IMPORT("wasi:cli/environment", "get-arguments") void get_arguments(uint32_t *list);
NEWER("wasi:http/types", "[constructor]fields") int32_t fields_new(void);
NEWER("wasi:http/types", "[static]request.new")
void request_new(int32_t fields, int32_t has_contents, int32_t contents, int32_t trailers, int32_t has_options, int32_t options,
                 int32_t *result);
NEWER("wasi:http/types", "[method]request.set-scheme")
int32_t set_scheme(int32_t request, int32_t some, int32_t scheme, const char *start, size_t length);
NEWER("wasi:http/types", "[method]request.set-authority")
int32_t set_authority(int32_t request, int32_t some, const char *start, size_t length);
NEWER("wasi:http/types", "[method]request.set-path-with-query")
int32_t set_path(int32_t request, int32_t some, const char *start, size_t length);
/* Of the types of request.new the trailers are the second. The writable end is the upper half. */
NEWER("wasi:http/types", "[future-new-1][static]request.new") int64_t trailers_new(void);
NEWER("wasi:http/types", "[async-lower][future-write-1][static]request.new")
int32_t trailers_write(int32_t writable, const void *value);
/* Lowered as if it were not async: it waits. */
NEWER("wasi:http/client", "send") void client_send(int32_t request, uint8_t *result);
NEWER("wasi:http/types", "[method]response.get-status-code") int32_t response_status(int32_t response);

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.3.0#run"))) int32_t run(void) {
    static const uint8_t no_trailers[64] __attribute__((aligned(8)));
    uint8_t result[64] __attribute__((aligned(8))) = {0};
    uint32_t list[2];
    int32_t made[2], response;
    get_arguments(list);
    struct text *arguments = (void *)list[0];
    if (list[1] != 3)
        return 1;
    int64_t trailers = trailers_new();
    request_new(fields_new(), 0, 0, (int32_t)trailers, 0, 0, made);
    if (set_scheme(made[0], 1, arguments[1].length == 5, NULL, 0) != 0)
        return 1;
    if (set_path(made[0], 1, "/", 1) != 0)
        return 1;
    if (set_authority(made[0], 1, arguments[2].start, arguments[2].length) != 0)
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
