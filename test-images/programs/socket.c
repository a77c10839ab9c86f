/*
 * A command of WASI 0.3 that succeeds if
 *
 *   A.B.C.D PORT         it could connect by TCP
 *   A.B.C.D PORT TEXT    it could send TEXT by UDP
 *   in FOLDER            it begins in that folder
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(module, name) __attribute__((import_module(module "@0.3.0"), import_name(name)))

IMPORT("wasi:cli/environment", "get-arguments") void get_arguments(uint32_t *list);
IMPORT("wasi:cli/environment", "get-initial-cwd") void initial_folder(uint8_t *option_text);
IMPORT("wasi:sockets/types", "[static]tcp-socket.create") void tcp_create(int32_t family, uint8_t *result);
/* Lowered as if it were not async: it waits. */
IMPORT("wasi:sockets/types", "[method]tcp-socket.connect")
void tcp_connect(int32_t socket, int32_t version, int32_t port, int32_t a, int32_t b, int32_t c, int32_t d, int32_t e,
                 int32_t f, int32_t g, int32_t h, int32_t i, int32_t j, uint8_t *result);

IMPORT("wasi:sockets/types", "[static]udp-socket.create") void udp_create(int32_t family, uint8_t *result);
IMPORT("wasi:sockets/types", "[method]udp-socket.send")
void udp_send(int32_t socket, const char *start, size_t length, int32_t some, int32_t version, int32_t port, int32_t a, int32_t b,
              int32_t c, int32_t d, int32_t e, int32_t f, int32_t g, int32_t h, int32_t i, int32_t j, uint8_t *result);

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

/* Numbers with dots between. */
static void parse(const char *text, size_t length, int32_t *numbers, size_t count) {
    for (size_t n = 0, at = 0; n < length && at < count; n++) {
        if (text[n] == '.')
            at++;
        else
            numbers[at] = numbers[at] * 10 + (text[n] - '0');
    }
}

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.3.0#run"))) int32_t run(void) {
    struct {
        const char *start;
        uint32_t length;
    } *arguments;
    uint32_t list[2];
    uint8_t result[32] __attribute__((aligned(4))) = {0};
    int32_t to[4] = {0}, port = 0, socket;
    get_arguments(list);
    arguments = (void *)list[0];
    if (list[1] != 3 && list[1] != 4)
        return 1;
    if (arguments[1].start[0] == 'i') {
        const char *folder;
        uint32_t length;
        initial_folder(result);
        memcpy(&folder, result + 4, sizeof folder);
        memcpy(&length, result + 8, sizeof length);
        return result[0] != 1 || length != arguments[2].length || memcmp(folder, arguments[2].start, length) != 0;
    }
    parse(arguments[1].start, arguments[1].length, to, 4);
    parse(arguments[2].start, arguments[2].length, &port, 1);
    (list[1] == 4 ? udp_create : tcp_create)(0, result);
    if (result[0] != 0)
        return 1;
    memcpy(&socket, result + 4, sizeof socket);
    if (list[1] == 4) {
        udp_send(socket, arguments[3].start, arguments[3].length, 1, 0, port, to[0], to[1], to[2], to[3], 0, 0, 0, 0, 0, 0, result);
        return result[0] != 0;
    }
    tcp_connect(socket, 0, port, to[0], to[1], to[2], to[3], 0, 0, 0, 0, 0, 0, result);
    return result[0] != 0;
}
