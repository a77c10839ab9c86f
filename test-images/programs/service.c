/*
 * A service of WASI 0.2 (wasi:http/incoming-handler), on the canonical ABI (component model, CanonicalABI.md).
 *
 *   /count   how many requests this instance has had
 *   /trap    traps
 *   /loop    never ends
 *   /read    "hello", after it has read the request's body to its end
 *   /large   32 MiB, but no more than its client takes
 *   other    "hello"
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TYPES(name) __attribute__((import_module("wasi:http/types@0.2.0"), import_name(name)))
#define STREAMS(name) __attribute__((import_module("wasi:io/streams@0.2.0"), import_name(name)))

struct text {
    const char *start;
    size_t length;
};

TYPES("[constructor]fields") int32_t fields_new(void);
TYPES("[method]incoming-request.path-with-query") void request_path(int32_t request, uint8_t *option_text);
TYPES("[method]incoming-request.consume") void request_consume(int32_t request, uint8_t *result_handle);
TYPES("[method]incoming-body.stream") void body_read(int32_t body, uint8_t *result_handle);
TYPES("[constructor]outgoing-response") int32_t response_new(int32_t fields);
TYPES("[method]outgoing-response.body") void response_body(int32_t response, uint8_t *result_handle);
TYPES("[method]outgoing-body.write") void body_write(int32_t body, uint8_t *result_handle);
TYPES("[static]outgoing-body.finish") void body_finish(int32_t body, int32_t some, int32_t trailers, uint8_t *result);
TYPES("[static]response-outparam.set")
void outparam_set(int32_t out, int32_t is_error, int32_t response, int32_t a, int64_t b, int32_t c, int32_t d, int32_t e,
                  int32_t f);
STREAMS("[method]output-stream.blocking-write-and-flush")
void stream_write(int32_t stream, const char *start, size_t length, uint8_t *result);
STREAMS("[method]input-stream.blocking-read") void stream_read(int32_t stream, int64_t most, uint8_t *result);
STREAMS("[resource-drop]output-stream") void stream_drop(int32_t stream);

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

/* The handle in a result<own<T>>: the discriminant is a byte, the payload is aligned to four. */
static int32_t handle_of(const uint8_t *result) {
    int32_t handle;
    if (result[0] != 0)
        __builtin_trap();
    memcpy(&handle, result + 4, sizeof handle);
    return handle;
}

/* Reads to the end: result<list<u8>, stream-error> has the list at 4. */
static void read_all(int32_t request) {
    uint8_t result[16] __attribute__((aligned(4))) = {0};
    struct text bytes;
    request_consume(request, result);
    body_read(handle_of(result), result);
    for (int32_t stream = handle_of(result);;) {
        stream_read(stream, 4096, result);
        if (result[0] != 0)
            return;
        memcpy(&bytes, result + 4, sizeof bytes);
        free((void *)bytes.start);
    }
}

static int is(const struct text *path, const char *wanted) {
    return path->length == strlen(wanted) && memcmp(path->start, wanted, path->length) == 0;
}

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void handle(int32_t request, int32_t out) {
    static int count;
    static char answer[] = "hello\n";
    uint8_t result[64] = {0};
    struct text path = {"", 0};
    count++;
    request_path(request, result);
    if (result[0] == 1)
        memcpy(&path, result + 4, sizeof path);
    if (is(&path, "/trap"))
        __builtin_trap();
    for (volatile int turns = 0; is(&path, "/loop"); turns = turns + 1)
        ;
    if (is(&path, "/read"))
        read_all(request);
    if (is(&path, "/count")) {
        answer[0] = (char)('0' + count % 10);
        answer[1] = '\n';
    }
    size_t length = is(&path, "/count") ? 2 : strlen(answer);
    int32_t response = response_new(fields_new());
    response_body(response, result);
    int32_t body = handle_of(result);
    outparam_set(out, 0, response, 0, 0, 0, 0, 0, 0);
    body_write(body, result);
    int32_t stream = handle_of(result);
    if (is(&path, "/large")) {
        static const char chunk[4096];
        for (int n = 0; n < 8192 && result[0] == 0; n++)
            stream_write(stream, chunk, sizeof chunk, result);
    } else {
        stream_write(stream, answer, length, result);
    }
    stream_drop(stream);
    body_finish(body, 0, 0, result);
}
