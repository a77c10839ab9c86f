/*
 * An OCI hook: `hook FILE [OPERATION...]`.
 *
 * Appends to FILE what it is and what it was given, in lines "KEY VALUE":
 *   hook      argv[0]; it begins a record
 *   arg, env  each of them
 *   cwd, fd   the current folder, and each open descriptor but those of its own
 *   ns        each namespace, as a link of /proc/self/ns
 *   status    lines of /proc/self/status
 *   stdin     all of it, on one line
 * and then does what the operations say, in their order:
 *   see PATH            appends "see PATH" if there is such a file
 *   write PATH          makes an empty file
 *   bind SOURCE TARGET  mounts one folder on another
 *   tell FIFO           waits for a reader of a fifo, who thereby knows that this hook runs
 *   hang                makes a child and waits for ever, as the child does
 *   behind FIFO         makes a child that goes on until somebody has opened the fifo for writing
 *   exit CODE MESSAGE   writes the message to stderr, on a line, and ends
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

extern char **environ;

static FILE *file;

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(99);
}

static void namespaces(void) {
    static const char *const kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts", NULL};
    for (const char *const *kind = kinds; *kind; kind++) {
        char path[64], link[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", *kind);
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n < 0)
            fail(path);
        link[n] = 0;
        fprintf(file, "ns %s\n", link);
    }
}

static void status(void) {
    static const char *const keys[] = {"Uid:", "Gid:", "CapEff:", "NoNewPrivs:", "Seccomp:", NULL};
    FILE *status = fopen("/proc/self/status", "re");
    char line[256];
    if (!status)
        fail("/proc/self/status");
    while (fgets(line, sizeof line, status))
        for (const char *const *key = keys; *key; key++)
            if (strncmp(line, *key, strlen(*key)) == 0)
                fprintf(file, "status %s", line);
    fclose(status);
}

static void descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        fail("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(folder));) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] != '.' && fd != dirfd(folder) && fd != fileno(file))
            fprintf(file, "fd %d\n", fd);
    }
    closedir(folder);
}

static void input(void) {
    fputs("stdin ", file);
    for (int c; (c = getchar()) != EOF;)
        if (c != '\n')
            putc(c, file);
    putc('\n', file);
}

int main(int argc, char **argv) {
    char cwd[4096];
    if (argc < 2)
        return 2;
    file = fopen(argv[1], "ae");
    if (!file)
        fail(argv[1]);
    fprintf(file, "hook %s\n", argv[0]);
    for (int i = 1; i < argc; i++)
        fprintf(file, "arg %s\n", argv[i]);
    for (char **entry = environ; *entry; entry++)
        fprintf(file, "env %s\n", *entry);
    fprintf(file, "cwd %s\n", getcwd(cwd, sizeof cwd) ? cwd : strerror(errno));
    descriptors();
    namespaces();
    status();
    input();
    fflush(file);

    for (char **arg = argv + 2; *arg; arg++) {
        if (strcmp(*arg, "see") == 0 && *++arg) {
            if (access(*arg, F_OK) == 0)
                fprintf(file, "see %s\n", *arg);
            fflush(file);
        } else if (strcmp(*arg, "write") == 0 && *++arg) {
            int fd = open(*arg, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
            if (fd < 0)
                fail(*arg);
            close(fd);
        } else if (strcmp(*arg, "bind") == 0 && arg[1] && arg[2]) {
            if (mount(arg[1], arg[2], NULL, MS_BIND, NULL) < 0)
                fail(arg[2]);
            arg += 2;
        } else if (strcmp(*arg, "tell") == 0 && *++arg) {
            int fd = open(*arg, O_WRONLY | O_CLOEXEC);
            if (fd < 0)
                fail(*arg);
            close(fd);
        } else if (strcmp(*arg, "hang") == 0) {
            if (fork() < 0)
                fail("fork");
            for (;;)
                pause();
        } else if (strcmp(*arg, "behind") == 0 && *++arg) {
            pid_t child = fork();
            if (child < 0)
                fail("fork");
            if (child == 0) {
                int fd = open(*arg, O_RDONLY | O_CLOEXEC);
                _exit(fd < 0);
            }
        } else if (strcmp(*arg, "exit") == 0 && arg[1] && arg[2]) {
            fprintf(stderr, "not the last line\n%s\n", arg[2]);
            return atoi(arg[1]);
        } else {
            fprintf(stderr, "%s: not an operation\n", *arg ? *arg : "nothing");
            return 2;
        }
    }
    return 0;
}
