/*
 * A command of WASI 0.2 that uses the network: it succeeds if it could.
 *
 *   resolve NAME A.B.C.D    the first address of a name is that one
 *   connect A.B.C.D PORT    a TCP connection
 *   named NAME PORT         a TCP connection to the first address of a name
 *   bind PORT               a TCP socket bound to a port
 *   listen PORT             a TCP connection that was accepted on a port
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(module, name) __attribute__((import_module(module "@0.2.0"), import_name(name)))

IMPORT("wasi:cli/environment", "get-arguments") void get_arguments(uint32_t *list);
IMPORT("wasi:sockets/instance-network", "instance-network") int32_t instance_network(void);
IMPORT("wasi:sockets/ip-name-lookup", "resolve-addresses")
void resolve_addresses(int32_t network, const char *start, size_t length, uint8_t *result);
IMPORT("wasi:sockets/ip-name-lookup", "[method]resolve-address-stream.resolve-next-address")
void next_address(int32_t stream, uint8_t *result);
IMPORT("wasi:sockets/ip-name-lookup", "[method]resolve-address-stream.subscribe") int32_t stream_subscribe(int32_t stream);
IMPORT("wasi:sockets/tcp-create-socket", "create-tcp-socket") void create_tcp_socket(int32_t family, uint8_t *result);
#define ADDRESS int32_t version, int32_t port, int32_t a, int32_t b, int32_t c, int32_t d, int32_t e, int32_t f, int32_t g, \
    int32_t h, int32_t i, int32_t j
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.start-connect")
void start_connect(int32_t socket, int32_t network, ADDRESS, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.finish-connect") void finish_connect(int32_t socket, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.start-bind")
void start_bind(int32_t socket, int32_t network, ADDRESS, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.finish-bind") void finish_bind(int32_t socket, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.start-listen") void start_listen(int32_t socket, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.finish-listen") void finish_listen(int32_t socket, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.accept") void tcp_accept(int32_t socket, uint8_t *result);
IMPORT("wasi:sockets/tcp", "[method]tcp-socket.subscribe") int32_t socket_subscribe(int32_t socket);
IMPORT("wasi:io/poll", "[method]pollable.block") void pollable_block(int32_t pollable);
IMPORT("wasi:io/poll", "[resource-drop]pollable") void pollable_drop(int32_t pollable);

/* error-code.would-block */
#define WOULD_BLOCK 8

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

static void wait_for(int32_t pollable) {
    pollable_block(pollable);
    pollable_drop(pollable);
}

/* The first address of version 4 that a name has; 0 if there is none. */
static int resolve(int32_t network, const char *name, size_t length, uint8_t address[4]) {
    uint8_t result[32] = {0};
    int32_t stream;
    resolve_addresses(network, name, length, result);
    if (result[0] != 0)
        return 0;
    memcpy(&stream, result + 4, sizeof stream);
    for (;;) {
        /* result<option<ip-address>, error-code>: at 2 the option, at 4 the version, at 6 the address. */
        next_address(stream, result);
        if (result[0] != 0) {
            if (result[2] != WOULD_BLOCK)
                return 0;
            wait_for(stream_subscribe(stream));
        } else if (result[2] == 0) {
            return 0;
        } else if (result[4] == 0) {
            memcpy(address, result + 6, 4);
            return 1;
        }
    }
}

/* Waits for a connection on a socket whose binding has been begun. */
static int accept_one(int32_t socket) {
    static void (*const steps[])(int32_t, uint8_t *) = {finish_bind, start_listen, finish_listen, tcp_accept};
    uint8_t result[16] = {0};
    for (size_t n = 0; n < sizeof steps / sizeof *steps; n++) {
        while (steps[n](socket, result), result[0] != 0) {
            /* An error without a value to hold has its code at 1. */
            if (result[n == 3 ? 4 : 1] != WOULD_BLOCK)
                return 0;
            wait_for(socket_subscribe(socket));
        }
    }
    return 1;
}

enum use { CONNECT, BIND, LISTEN };

static int use_tcp(int32_t network, const uint8_t address[4], int32_t port, enum use use) {
    uint8_t result[16] = {0};
    int32_t socket;
    create_tcp_socket(0, result);
    if (result[0] != 0)
        return 0;
    memcpy(&socket, result + 4, sizeof socket);
    (use == CONNECT ? start_connect : start_bind)(socket, network, 0, port, address[0], address[1], address[2], address[3], 0, 0, 0, 0,
                                        0, 0, result);
    if (use == LISTEN && result[0] == 0)
        return accept_one(socket);
    if (use == BIND || result[0] != 0)
        return result[0] == 0;
    do {
        wait_for(socket_subscribe(socket));
        finish_connect(socket, result);
    } while (result[0] != 0 && result[4] == WOULD_BLOCK);
    return result[0] == 0;
}

/* Four numbers with dots between. */
static void parse(const char *text, size_t length, uint8_t address[4]) {
    memset(address, 0, 4);
    for (size_t n = 0, at = 0; n < length && at < 4; n++) {
        if (text[n] == '.')
            at++;
        else
            address[at] = (uint8_t)(address[at] * 10 + (text[n] - '0'));
    }
}

static int number(const char *text, size_t length) {
    int value = 0;
    for (size_t n = 0; n < length; n++)
        value = value * 10 + (text[n] - '0');
    return value;
}

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run(void) {
    struct {
        const char *start;
        uint32_t length;
    } *arguments;
    uint32_t list[2];
    uint8_t found[4] = {0}, wanted[4];
    get_arguments(list);
    arguments = (void *)list[0];
    if (list[1] < 3)
        return 1;
    const char *verb = arguments[1].start, *what = arguments[2].start;
    int32_t network = instance_network();
    if (verb[0] == 'b' || verb[0] == 'l')
        return !use_tcp(network, found, number(what, arguments[2].length), verb[0] == 'b' ? BIND : LISTEN);
    if (list[1] < 4)
        return 1;
    if (verb[0] == 'c') {
        parse(what, arguments[2].length, wanted);
        return !use_tcp(network, wanted, number(arguments[3].start, arguments[3].length), CONNECT);
    }
    if (!resolve(network, what, arguments[2].length, found))
        return 1;
    if (verb[0] == 'n')
        return !use_tcp(network, found, number(arguments[3].start, arguments[3].length), CONNECT);
    parse(arguments[3].start, arguments[3].length, wanted);
    return memcmp(found, wanted, 4) != 0;
}
