/*
 * What a hostile image tries: each sub-command is one way out of a container that a runtime once left open, or one that it
 * may find open in what stands next to it. Linux only.
 */
#define _GNU_SOURCE
#include "probe.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH = 4096, LONGER = 2 * PATH };

/* Exchanges two names again and again, until it is ended. */
int swap(const char *first, const char *second) {
    if (renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE) != 0)
        return fail("renameat2");
    ready();
    for (;;)
        if (renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE) != 0 && errno != ENOENT)
            return fail("renameat2");
}

static const char *outcome(int result) {
    return result < 0 ? strerror(errno) : "ok";
}

/* Whether a file can be written to, but for that somebody executes it: open(2) would say ETXTBSY before all else. */
static const char *writable(const char *path) {
    return outcome(access(path, W_OK));
}

/* A process next to it: whether its memory, its descriptors and its program can be had, a line each. */
int peek(const char *pid) {
    static const char *const files[] = {"mem", "environ", "maps", NULL};
    static const char *const links[] = {"exe", "cwd", "root", "fd/0", NULL};
    char path[PATH], target[PATH];
    for (int i = 0; files[i]; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, files[i]);
        int fd = open(path, O_RDONLY);
        /* Some are opened by anybody, and then are empty or say EPERM. */
        ssize_t n = fd < 0 ? -1 : read(fd, target, sizeof target);
        if (n < 0 && fd >= 0 && errno == EIO)
            n = 0;
        printf("%s %s\n", files[i], n < 0 || fd < 0 ? strerror(errno) : strcmp(files[i], "mem") == 0 || n > 0 ? "ok" : "empty");
        if (fd >= 0)
            close(fd);
    }
    for (int i = 0; links[i]; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, links[i]);
        printf("%s %s\n", links[i], outcome((int)readlink(path, target, sizeof target)));
    }
    snprintf(path, sizeof path, "/proc/%s/exe", pid);
    printf("write-exe %s\n", writable(path));
    return 0;
}

/*
 * Looks for other processes until its stdin ends. Of one that is not this program and whose program it can open: whether
 * that can be written to. Prints what it has found out, once.
 */
int hunt(void) {
    static char own[PATH], path[LONGER], target[PATH], seen[64][PATH];
    int count = 0;
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    if (length < 0 || fcntl(0, F_SETFL, O_NONBLOCK) != 0)
        return fail("hunt");
    ready();
    for (char byte; read(0, &byte, 1) != 0;) {
        DIR *all = opendir("/proc");
        if (!all)
            return fail("/proc");
        for (struct dirent *entry; (entry = readdir(all));) {
            if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
                continue;
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            ssize_t n = readlink(path, target, sizeof target - 1);
            if (n <= 0)
                continue;
            target[n] = 0;
            if (strcmp(target, own) == 0)
                continue;
            int fd = open(path, O_PATH);
            if (fd < 0)
                continue;
            char line[PATH];
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            snprintf(line, sizeof line, "exe %.1000s: %s", target, writable(path));
            int known = 0;
            for (int i = 0; i < count; i++)
                known |= strcmp(seen[i], line) == 0;
            if (!known && count < 64) {
                strcpy(seen[count++], line);
                puts(line);
                fflush(stdout);
            }
            close(fd);
        }
        closedir(all);
    }
    return 0;
}

/* A file of the kernel's that is the host's: it is not changed, so that a failing test does no harm. */
static void open_to_write(const char *path) {
    struct stat st;
    int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return;
    /* A masked one is a device, /dev/null. */
    if (fstat(fd, &st) == 0 && !S_ISCHR(st.st_mode))
        printf("opened %s\n", path);
    close(fd);
}

static void hit(const char *how, const char *path) {
    int fd = open(path, O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return;
    if (write(fd, "h", 1) == 1)
        printf("wrote %s %s\n", how, path);
    close(fd);
}

/*
 * Tries to write to FILE, which is the host's, by every way that there is: by its own path, from the current folder, by the
 * descriptors, and by the folders, of each process that can be seen. And to open what of the kernel's is the host's.
 */
int storm(const char *file) {
    static const char *const kernel[] = {
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom", "/proc/sysrq-trigger",
        "/proc/sys/fs/binfmt_misc/register", "/sys/kernel/uevent_helper", "/sys/power/state", "/proc/timer_list",
        "/proc/kcore", "/proc/keys", NULL};
    char path[LONGER], climb[PATH] = "";
    hit("by its path", file);
    for (int i = 0; i < 16; i++)
        strcat(climb, "../");
    snprintf(path, sizeof path, "%s%s", climb, file + 1);
    hit("from the current folder", path);
    for (int i = 0; kernel[i]; i++)
        open_to_write(kernel[i]);
    for (int fd = 3; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d/%s%s", fd, climb, file + 1);
        hit("by a descriptor", path);
        if (fcntl(fd, F_GETFD) >= 0)
            printf("leaked %d\n", fd);
    }
    DIR *all = opendir("/proc");
    if (!all) {
        puts("no /proc");
        return 0;
    }
    for (struct dirent *entry; (entry = readdir(all));) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        static const char *const folders[] = {"root", "cwd", NULL};
        for (int i = 0; folders[i]; i++) {
            snprintf(path, sizeof path, "/proc/%.20s/%s/%s%s", entry->d_name, folders[i], climb, file + 1);
            hit("by a process", path);
        }
        snprintf(path, sizeof path, "/proc/%.20s/exe", entry->d_name);
        hit("a program", path);
    }
    closedir(all);
    puts("done");
    return 0;
}
