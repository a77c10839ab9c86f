/* Beside a service of WASI 0.3: one of WASI 0.2, which is not to be called then. */
#include <stdint.h>

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void handle_0_2(int32_t request, int32_t out) {
    (void)request, (void)out;
    __builtin_trap();
}
