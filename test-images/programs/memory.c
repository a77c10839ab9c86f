/* The part of the probe that takes memory. */
#define _GNU_SOURCE
#include "probe.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifndef __wasi__
#include <sys/wait.h>
#endif

int eat(long megabytes) {
    for (long n = 0; n < megabytes; n++) {
        volatile char *piece = malloc(1 << 20);
        if (!piece)
            return fail("malloc");
        /* A page that is only reserved costs nothing. */
        for (long i = 0; i < 1 << 20; i += 4096)
            piece[i] = 1;
    }
    puts("eaten");
    fflush(stdout);
    return 0;
}

#ifndef __wasi__
int eat_in_child(long megabytes) {
    pid_t pid = fork();
    if (pid < 0)
        return fail("fork");
    if (pid == 0)
        _exit(eat(megabytes));
    int status;
    if (waitpid(pid, &status, 0) != pid)
        return fail("waitpid");
    printf("child ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    ready();
    for (;;)
        pause();
}
#endif
