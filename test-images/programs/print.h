/* Text on stdout, and what every guest of WASI 0.2 that prints has in it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(module, name) __attribute__((import_module(module "@0.2.0"), import_name(name)))

IMPORT("wasi:cli/stdout", "get-stdout") int32_t get_stdout(void);
IMPORT("wasi:io/streams", "[method]output-stream.blocking-write-and-flush")
void stream_write(int32_t stream, const char *start, size_t length, uint8_t *result);
IMPORT("wasi:io/streams", "[resource-drop]output-stream") void stream_drop(int32_t stream);

struct text {
    const char *start;
    size_t length;
};

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

/* A line. */
static void print(const char *start, size_t length) {
    uint8_t result[16] = {0};
    int32_t stream = get_stdout();
    stream_write(stream, start, length, result);
    stream_write(stream, "\n", 1, result);
    stream_drop(stream);
}
