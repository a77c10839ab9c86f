/*
 * A log driver, started by a shim on the host as `binary:///path/of/logger?file=PATH&ready=HOW` tells it to.
 *
 * Reads the container's stdout from descriptor 3 and its stderr from 4, writes them to PATH and PATH.err, and says on
 * 5 that it is ready. PATH.about gets "pid CONTAINER_NAMESPACE CONTAINER_ID". HOW is
 *   close  close descriptor 5, as loggers of containerd's Go package do (the default)
 *   byte   write a byte to it before, as loggers for binary-v2:// do
 *   exit   end at once, without a word
 *   never  keep it open and do nothing
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int create(const char *path, const char *suffix) {
    char name[4096];
    snprintf(name, sizeof name, "%s%s", path, suffix);
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
        perror(name);
        exit(1);
    }
    return fd;
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "-";
}

int main(int argc, char **argv) {
    const char *file = NULL, *how = "close";
    /* Each key of the query is followed by its value. */
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "file") == 0)
            file = argv[i + 1];
        if (strcmp(argv[i], "ready") == 0)
            how = argv[i + 1];
    }
    if (!file)
        return 2;
    int about = create(file, ".about");
    dprintf(about, "%d %s %s\n", (int)getpid(), variable("CONTAINER_NAMESPACE"), variable("CONTAINER_ID"));
    if (strcmp(how, "exit") == 0)
        return 0;
    if (strcmp(how, "never") == 0)
        for (;;)
            pause();
    /* Whoever ends the logger politely wants the rest of the output kept: it ends by the end of both streams. */
    signal(SIGTERM, SIG_IGN);
    int out[2] = {create(file, ""), create(file, ".err")};
    if (strcmp(how, "byte") == 0 && write(5, "1", 1) != 1)
        return 1;
    close(5);
    struct pollfd in[2] = {{.fd = 3, .events = POLLIN}, {.fd = 4, .events = POLLIN}};
    static char buffer[65536];
    while (in[0].fd >= 0 || in[1].fd >= 0) {
        if (poll(in, 2, -1) < 0)
            return 1;
        for (int i = 0; i < 2; i++) {
            if (in[i].fd < 0 || !in[i].revents)
                continue;
            ssize_t n = read(in[i].fd, buffer, sizeof buffer);
            if (n <= 0)
                in[i].fd = -1;
            else if (write(out[i], buffer, (size_t)n) != n)
                return 1;
        }
    }
    return 0;
}
