/* The part of the probe that looks at terminals. WASI only has isatty(3). */
#define _GNU_SOURCE
#include "probe.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#ifndef __wasi__
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#endif

int show_isatty(void) {
    printf("%d %d %d\n", isatty(0), isatty(1), isatty(2));
    return 0;
}

#ifndef __wasi__
static int show_size(void) {
    struct winsize size;
    if (ioctl(0, TIOCGWINSZ, &size) != 0)
        return fail("TIOCGWINSZ");
    printf("size %u %u\n", size.ws_row, size.ws_col);
    fflush(stdout);
    return 0;
}

int show_terminal(void) {
    char name[64] = "none";
    struct stat own, console;
    struct termios settings;
    ttyname_r(0, name, sizeof name);
    printf("name %s\n", name);
    if (fstat(0, &own) != 0 || tcgetattr(0, &settings) != 0)
        return fail("stdin");
    printf("owner %u mode %o\n", (unsigned)own.st_uid, (unsigned)own.st_mode & 07777);
    printf("session leader %s\n", getsid(0) == getpid() ? "yes" : "no");
    printf("foreground %s\n", tcgetpgrp(0) == getpgrp() ? "yes" : "no");
    int controlling = open("/dev/tty", O_RDWR | O_CLOEXEC);
    printf("/dev/tty %s\n", controlling < 0 ? strerror(errno) : "ok");
    int same = stat("/dev/console", &console) == 0 && console.st_rdev == own.st_rdev;
    printf("/dev/console %s\n", same ? "same" : "other");
    printf("echo %s\n", settings.c_lflag & ECHO ? "yes" : "no");
    return show_size();
}

static void changed(int signal) {
    (void)signal;
}

int show_sizes(int count) {
    sigset_t winch, before;
    sigemptyset(&winch);
    sigaddset(&winch, SIGWINCH);
    sigprocmask(SIG_BLOCK, &winch, &before);
    struct sigaction action = {.sa_handler = changed};
    sigaction(SIGWINCH, &action, NULL);
    show_size();
    ready();
    while (count-- > 0) {
        sigsuspend(&before);
        show_size();
    }
    return 0;
}

int raw(long count) {
    struct termios settings;
    if (tcgetattr(0, &settings) != 0)
        return fail("tcgetattr");
    cfmakeraw(&settings);
    if (tcsetattr(0, TCSANOW, &settings) != 0)
        return fail("tcsetattr");
    ready();
    char buffer[4096];
    while (count > 0) {
        ssize_t n = read(0, buffer, sizeof buffer);
        if (n <= 0)
            return fail("read");
        for (ssize_t done = 0; done < n;) {
            ssize_t written = write(1, buffer + done, (size_t)(n - done));
            if (written < 0)
                return fail("write");
            done += written;
        }
        count -= n;
    }
    return 0;
}
#endif
