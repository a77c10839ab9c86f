/*
 * A command of WASI 0.2 that succeeds if wasi:config has the value:
 *
 *   KEY VALUE
 *   KEY          it has none
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

__attribute__((import_module("wasi:cli/environment@0.2.0"), import_name("get-arguments"))) void get_arguments(uint32_t *list);
__attribute__((import_module("wasi:config/store@0.2.0-rc.1"), import_name("get"))) void get(const char *key, size_t length,
                                                                                            uint8_t *result);

struct text {
    const char *start;
    size_t length;
};

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run(void) {
    uint8_t result[16] = {0};
    uint32_t list[2];
    get_arguments(list);
    struct text *arguments = (void *)list[0], value;
    if (list[1] < 2)
        return 1;
    /* result<option<string>, error>: the option is at 4, the string at 8. */
    get(arguments[1].start, arguments[1].length, result);
    if (result[0] != 0)
        return 1;
    if (list[1] < 3)
        return result[4] != 0;
    memcpy(&value, result + 8, sizeof value);
    return result[4] != 1 || value.length != arguments[2].length || memcmp(value.start, arguments[2].start, value.length) != 0;
}
