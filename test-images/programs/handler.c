/*
 * A service of WASI 0.3 (wasi:http/handler), on the canonical ABI (component model, Concurrency.md and CanonicalABI.md).
 *
 *   /count   how many requests this instance has had
 *   /trap    traps
 *   /hold    is not answered for an hour
 *   other    the target as the guest sees it: its authority and path
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TYPES(name) __attribute__((import_module("wasi:http/types@0.3.0"), import_name(name)))
#define CLOCK(name) __attribute__((import_module("wasi:clocks/monotonic-clock@0.3.0"), import_name(name)))
#define OWN(name) __attribute__((import_module("[export]wasi:http/handler@0.3.0"), import_name(name)))
#define ROOT(name) __attribute__((import_module("$root"), import_name(name)))

TYPES("[constructor]fields") int32_t fields_new(void);
TYPES("[method]request.get-path-with-query") void request_path(int32_t request, uint8_t *option_text);
TYPES("[method]request.get-authority") void request_authority(int32_t request, uint8_t *option_text);
TYPES("[resource-drop]request") void request_drop(int32_t request);
TYPES("[static]response.new")
void response_new(int32_t fields, int32_t some, int32_t contents, int32_t trailers, int32_t *result);
/* The types of response.new in their order: contents 0, trailers 1, and what it returns 2. The writable end is the upper half. */
TYPES("[stream-new-0][static]response.new") int64_t contents_new(void);
TYPES("[async-lower][stream-write-0][static]response.new")
int32_t contents_write(int32_t writable, const char *start, size_t length);
TYPES("[stream-drop-writable-0][static]response.new") void contents_drop(int32_t writable);
TYPES("[future-new-1][static]response.new") int64_t trailers_new(void);
TYPES("[async-lower][future-write-1][static]response.new") int32_t trailers_write(int32_t writable, const void *value);
TYPES("[future-drop-writable-1][static]response.new") void trailers_drop(int32_t writable);
TYPES("[future-drop-readable-2][static]response.new") void sent_drop(int32_t readable);
OWN("[task-return]handle")
void handle_return(int32_t is_error, int32_t response, int32_t a, int64_t b, int32_t c, int32_t d, int32_t e, int32_t f);
/* The state of the call, and what to wait for above four bits. */
CLOCK("[async-lower]wait-for") int32_t wait_for(int64_t nanoseconds);
ROOT("[waitable-set-new]") int32_t set_new(void);
ROOT("[waitable-set-drop]") void set_drop(int32_t set);
ROOT("[waitable-join]") void join(int32_t waitable, int32_t set);
ROOT("[context-get-0]") struct answer *context(void);
ROOT("[context-set-0]") void set_context(struct answer *answer);

enum { EXIT = 0, WAIT = 2 };
enum { STREAM_WRITE = 3, FUTURE_WRITE = 5 };
#define BLOCKED (-1)

/* What is still to be sent of an answer. */
struct answer {
    int32_t set, contents, trailers;
    int left;
    char text[256];
};

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

/* Appends an option<string>, which is freed; nothing if there is none. */
static size_t append(char *text, size_t length, const uint8_t *option) {
    char *start;
    size_t more;
    if (option[0] == 0)
        return length;
    memcpy(&start, option + 4, sizeof start);
    memcpy(&more, option + 8, sizeof more);
    if (more > 100)
        more = 100;
    memcpy(text + length, start, more);
    free(start);
    return length + more;
}

static void sent(struct answer *answer, int32_t event) {
    if (event == STREAM_WRITE)
        contents_drop(answer->contents);
    else if (event == FUTURE_WRITE)
        trailers_drop(answer->trailers);
    else
        __builtin_trap();
    answer->left--;
}

/* What is to be waited for next: this is returned to the caller. */
static int32_t next(struct answer *answer) {
    if (answer->left > 0)
        return WAIT | answer->set << 4;
    set_drop(answer->set);
    free(answer);
    return EXIT;
}

__attribute__((export_name("[async-lift]wasi:http/handler@0.3.0#handle"))) int32_t handle(int32_t request) {
    static const uint8_t no_trailers[64] __attribute__((aligned(8)));
    static int count;
    uint8_t option[12] __attribute__((aligned(4)));
    struct answer *answer = calloc(1, sizeof *answer);
    size_t path, length;
    count++;
    request_authority(request, option);
    path = append(answer->text, 0, option);
    request_path(request, option);
    length = append(answer->text, path, option);
    request_drop(request);
    if (strcmp(answer->text + path, "/trap") == 0)
        __builtin_trap();
    if (strcmp(answer->text + path, "/hold") == 0) {
        answer->set = set_new();
        join((int32_t)((uint32_t)wait_for(3600000000000) >> 4), answer->set);
        return WAIT | answer->set << 4;
    }
    if (strcmp(answer->text + path, "/count") == 0) {
        length = 0;
        for (int digits = count, unit = 100; unit > 0; unit /= 10)
            if (digits >= unit || unit == 1)
                answer->text[length++] = (char)('0' + digits / unit % 10);
    }
    answer->text[length++] = '\n';

    int64_t contents = contents_new(), trailers = trailers_new();
    int32_t response[2];
    response_new(fields_new(), 1, (int32_t)contents, (int32_t)trailers, response);
    sent_drop(response[1]);
    handle_return(0, response[0], 0, 0, 0, 0, 0, 0);

    answer->set = set_new();
    answer->contents = (int32_t)(contents >> 32);
    answer->trailers = (int32_t)(trailers >> 32);
    answer->left = 2;
    set_context(answer);
    if (contents_write(answer->contents, answer->text, length) != BLOCKED)
        sent(answer, STREAM_WRITE);
    else
        join(answer->contents, answer->set);
    if (trailers_write(answer->trailers, no_trailers) != BLOCKED)
        sent(answer, FUTURE_WRITE);
    else
        join(answer->trailers, answer->set);
    return next(answer);
}

__attribute__((export_name("[callback][async-lift]wasi:http/handler@0.3.0#handle"))) int32_t
handle_callback(int32_t event, int32_t waitable, int32_t code) {
    (void)waitable, (void)code;
    sent(context(), event);
    return next(context());
}
