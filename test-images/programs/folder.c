/*
 * A command of WASI 0.2 that prints the folder it begins in, or "none", and exports functions:
 *
 *   greet      prints "greet"
 *   give-up    traps
 *   add        takes and returns numbers
 */
#include "print.h"

IMPORT("wasi:cli/environment", "initial-cwd") void initial_folder(uint8_t *option_text);

__attribute__((export_name("greet"))) void greet(void) {
    print("greet", 5);
}

__attribute__((export_name("give-up"))) void give_up(void) {
    __builtin_trap();
}

__attribute__((export_name("add"))) int32_t add(int32_t a, int32_t b) {
    return a + b;
}

/* 0 is ok. */
__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run(void) {
    uint8_t option[12] __attribute__((aligned(4))) = {0};
    struct text folder = {"none", 4};
    initial_folder(option);
    if (option[0] == 1)
        memcpy(&folder, option + 4, sizeof folder);
    print(folder.start, folder.length);
    return 0;
}
