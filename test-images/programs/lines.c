/* Traps in a function of a line known to the tests: 4. */

static __attribute__((noinline)) void give_up(volatile int *value) {
    *value = 1000 / *value;
}

int main(void) {
    volatile int zero = 0;
    give_up(&zero);
    return zero;
}
