/* Beside a service: commands of WASI 0.2 and 0.3, which are not to be called then. */
#include <stdint.h>

__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run_0_2(void) {
    __builtin_trap();
}

__attribute__((export_name("wasi:cli/run@0.3.0#run"))) int32_t run_0_3(void) {
    __builtin_trap();
}
