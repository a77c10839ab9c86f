/*
 * The program of the test images: each sub-command shows one thing a container's process can see or do.
 *
 * The same source is built as a static Linux program and as a WASI 0.1 module, so that a test compares the same
 * behaviour. What WASI has no notion of (ids, signals, namespaces, resource limits) exists on Linux only.
 * "ready" on a line of its own tells the test that the state it waits for has been reached.
 */
#define _GNU_SOURCE
#include "probe.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifndef __wasi__
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#endif

extern char **environ;

int fail(const char *what) {
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    return 1;
}

void ready(void) {
    puts("ready");
    fflush(stdout);
}

static int copy(int from) {
    static char buffer[65536]; /* as large as the whole stack of a Wasm module */
    ssize_t n;
    while ((n = read(from, buffer, sizeof buffer)) > 0) {
        for (ssize_t done = 0; done < n;) {
            ssize_t written = write(1, buffer + done, (size_t)(n - done));
            if (written < 0)
                return fail("write");
            done += written;
        }
    }
    return n < 0 ? fail("read") : 0;
}

static int cat(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return fail(path);
    int code = copy(fd);
    close(fd);
    return code;
}

static int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0)
        return fail(path);
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) != 0)
        return fail(path);
    return 0;
}

static int list(const char *path) {
    DIR *dir = opendir(path);
    if (!dir)
        return fail(path);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            puts(entry->d_name);
    closedir(dir);
    return 0;
}

/* PATH: "mode uid gid size" and, of a device on Linux, "major:minor". */
static int show_stat(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0)
        return fail(path);
    printf("%o %u %u %lld", (unsigned)st.st_mode, (unsigned)st.st_uid, (unsigned)st.st_gid, (long long)st.st_size);
#ifndef __wasi__
    printf(" %u:%u", (unsigned)(st.st_rdev >> 8) & 0xfff, (unsigned)(st.st_rdev & 0xff));
#endif
    putchar('\n');
    return 0;
}

static int pause_for(double seconds) {
    struct timespec left = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
    return 0;
}

static int lines(long count) {
    for (long i = 1; i <= count; i++)
        printf("%ld\n", i);
    return 0;
}

/* As lines(), one each 10 ms until there is such a file; then "end". */
static int ticks(const char *file) {
    for (long i = 1; access(file, F_OK) != 0; i++) {
        printf("%ld\n", i);
        fflush(stdout);
        pause_for(0.01);
    }
    puts("end");
    return 0;
}

/* Answers each line of stdin with how many there have been: what it counts is in its memory only. */
static int count_lines(void) {
    int c;
    for (long count = 0; (c = getchar()) != EOF;)
        if (c == '\n') {
            printf("%ld\n", ++count);
            fflush(stdout);
        }
    return 0;
}

static int bytes(long long count) {
    static char buffer[65536];
    while (count > 0) {
        size_t part = count < (long long)sizeof buffer ? (size_t)count : sizeof buffer;
        ssize_t written = write(1, buffer, part);
        if (written < 0)
            return fail("write");
        count -= written;
    }
    return 0;
}

static _Noreturn void busy(void) {
    ready();
    for (volatile unsigned long n = 0;; n++)
        ;
}

static _Noreturn void wait_for_signal(void) {
    ready();
    for (;;)
        pause_for(1e6);
}

#ifndef __wasi__
static volatile sig_atomic_t last_signal;

static void remember(int signal) {
    last_signal = signal;
}

/* Waits for a signal and leaves with the code given; prints which signal came. */
static int on_signal(int signal, int code) {
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, signal);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    struct sigaction action = {.sa_handler = remember};
    sigaction(signal, &action, NULL);
    ready();
    while (!last_signal)
        sigsuspend(&before);
    printf("signal %d\n", (int)last_signal);
    return code;
}

/* Leaves COUNT children behind that only a signal ends, and then waits or exits as told. */
static int children(int count, int stay) {
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return fail("fork");
        if (pid == 0)
            for (;;)
                pause();
    }
    if (stay)
        wait_for_signal();
    return 0;
}

static int ids(void) {
    FILE *status = fopen("/proc/self/status", "r");
    if (!status)
        return fail("/proc/self/status");
    static const char *const wanted[] = {"Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:",
                                         "NoNewPrivs:", "Seccomp:", "SigIgn:", "SigBlk:", NULL};
    char line[4096];
    while (fgets(line, sizeof line, status))
        for (int i = 0; wanted[i]; i++)
            if (strncmp(line, wanted[i], strlen(wanted[i])) == 0)
                fputs(line, stdout);
    fclose(status);
    return 0;
}

static int namespaces(void) {
    static const char *const kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts", NULL};
    for (int i = 0; kinds[i]; i++) {
        char path[64], target[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0)
            return fail(path);
        target[n] = 0;
        puts(target);
    }
    return 0;
}

static int limit(const char *name) {
    static const struct {
        const char *name;
        int resource;
    } known[] = {{"core", RLIMIT_CORE},     {"cpu", RLIMIT_CPU},       {"fsize", RLIMIT_FSIZE}, {"memlock", RLIMIT_MEMLOCK},
                 {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC},   {"stack", RLIMIT_STACK}, {"data", RLIMIT_DATA},
                 {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE}, {"as", RLIMIT_AS}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            struct rlimit value;
            if (getrlimit(known[i].resource, &value) != 0)
                return fail("getrlimit");
            printf("%llu %llu\n", (unsigned long long)value.rlim_cur, (unsigned long long)value.rlim_max);
            return 0;
        }
    errno = EINVAL;
    return fail(name);
}

static int show_descriptors(void) {
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], target[4096];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0)
            continue;
        target[n] = 0;
        printf("%d %s\n", fd, target);
    }
    return 0;
}

/* Mounts procfs with the rights over a user namespace only: the kernel asks for one in sight that hides nothing. */
static long mount_procfs(const char *path) {
    int status;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) < 0)
        return -1;
    pid_t pid = fork();
    if (pid < 0)
        return -1;
    if (pid == 0)
        _exit(mount("proc", path, "proc", 0, "") < 0 ? errno : 0);
    if (waitpid(pid, &status, 0) < 0)
        return -1;
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
    return errno ? -1 : 0;
}

/* Tries one privileged thing and says "ok" or the errno's name in words. */
static int try(const char *what, const char *path) {
    long result;
    errno = 0;
    if (strcmp(what, "mount") == 0)
        result = mount("none", path ? path : "/tmp", "tmpfs", 0, "");
    else if (strcmp(what, "unshare") == 0)
        result = unshare(CLONE_NEWUTS);
    else if (strcmp(what, "keyctl") == 0)
        result = syscall(SYS_keyctl, 0, -3, 0, 0, 0);
    else if (strcmp(what, "mknod") == 0)
        result = mknod(path ? path : "/tmp/node", S_IFCHR | 0600, (8 << 8) | 0);
    else if (strcmp(what, "open") == 0)
        result = open(path ? path : "/", O_RDWR);
    else if (strcmp(what, "chown") == 0)
        result = chown(path ? path : "/tmp", 12, 34);
    else if (strcmp(what, "chroot") == 0)
        result = chroot("/");
    else if (strcmp(what, "sethostname") == 0)
        result = sethostname("probe", 5);
    else if (strcmp(what, "procfs") == 0)
        result = mount_procfs(path ? path : "/tmp");
    else
        result = -1, errno = EINVAL;
    puts(result < 0 ? strerror(errno) : "ok");
    return 0;
}

/* The device of the file system that the root is mounted on: unmounts the root and enters the mount namespace anew. */
static int beneath(void) {
    int namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (namespace < 0 || umount2("/", MNT_DETACH) < 0 || setns(namespace, CLONE_NEWNS) < 0)
        return fail("beneath");
    struct stat st;
    if (stat("/", &st) < 0)
        return fail("/");
    printf("%u:%u\n", (unsigned)(st.st_dev >> 8) & 0xfff, (unsigned)(st.st_dev & 0xff));
    return 0;
}

static int show_umask(void) {
    printf("%04o\n", (unsigned)umask(0));
    return 0;
}

static int show_names(void) {
    char host[256], domain[256];
    if (gethostname(host, sizeof host) != 0 || getdomainname(domain, sizeof domain) != 0)
        return fail("names");
    printf("%s %s\n", host, domain);
    return 0;
}
#endif

static int env(const char *name) {
    if (name) {
        const char *value = getenv(name);
        if (!value)
            return 1;
        puts(value);
        return 0;
    }
    for (char **entry = environ; *entry; entry++)
        puts(*entry);
    return 0;
}

static int cwd(void) {
    char path[4096];
    if (!getcwd(path, sizeof path))
        return fail("getcwd");
    puts(path);
    return 0;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "hello";
    const char *first = argc > 2 ? argv[2] : NULL;
    const char *second = argc > 3 ? argv[3] : NULL;
#define IS(name) (strcmp(command, name) == 0)
#define HAS(name, value) (IS(name) && (value))

    if (IS("hello")) {
#ifdef __wasi__
        puts("hello from WebAssembly");
#else
        puts("hello from Linux");
#endif
        return 0;
    }
    if (HAS("exit", first))
        return atoi(first);
    if (IS("echo"))
        return copy(0);
    if (HAS("say", second)) {
        fputs(first, stdout);
        fputs(second, stderr);
        return 0;
    }
    if (IS("args")) {
        for (int i = 0; i < argc; i++)
            puts(argv[i]);
        return 0;
    }
    if (IS("env"))
        return env(first);
    if (IS("pwd"))
        return cwd();
    if (HAS("cat", first))
        return cat(first);
    if (HAS("write", second))
        return write_file(first, second);
    if (HAS("ls", first))
        return list(first);
    if (HAS("stat", first))
        return show_stat(first);
    if (HAS("sleep", first))
        return pause_for(atof(first));
    if (IS("count"))
        return count_lines();
    if (HAS("lines", first))
        return lines(atol(first));
    if (HAS("ticks", first))
        return ticks(first);
    if (HAS("bytes", first))
        return bytes(atoll(first));
    if (HAS("reply", second)) {
        puts(first);
        return atoi(second);
    }
    if (HAS("eat", first))
        return eat(atol(first));
    if (IS("isatty"))
        return show_isatty();
    if (IS("spin"))
        busy();
    if (IS("pause"))
        wait_for_signal();
    if (IS("wait-stdin")) {
        ready();
        return copy(0);
    }
    if (IS("trap")) {
        fflush(stdout);
        __builtin_trap();
    }
#ifndef __wasi__
    if (IS("reap")) {
        /* As the first process of a pod does: its children need no wait. */
        signal(SIGCHLD, SIG_IGN);
        wait_for_signal();
    }
    if (IS("on-term"))
        return on_signal(SIGTERM, first ? atoi(first) : 0);
    if (HAS("on-signal", second))
        return on_signal(atoi(first), atoi(second));
    if (HAS("children", first))
        return children(atoi(first), 1);
    if (HAS("abandon", first))
        return children(atoi(first), 0);
    if (IS("id"))
        return ids();
    if (IS("ns"))
        return namespaces();
    if (HAS("ulimit", first))
        return limit(first);
    if (IS("fds"))
        return show_descriptors();
    if (HAS("try", first))
        return try(first, second);
    if (IS("beneath"))
        return beneath();
    if (IS("umask"))
        return show_umask();
    if (IS("names"))
        return show_names();
    if (IS("tty"))
        return show_terminal();
    if (HAS("sizes", first))
        return show_sizes(atoi(first));
    if (HAS("raw", first))
        return raw(atol(first));
    if (IS("scheduling"))
        return show_scheduling();
    if (HAS("call", second))
        return call(strcmp(first, "umask") ? atol(first) : SYS_umask, strtoul(second, NULL, 0));
    if (HAS("call32", second))
        return call32(atol(first), strtoul(second, NULL, 0));
    if (HAS("swap", second))
        return swap(first, second);
    if (HAS("peek", first))
        return peek(first);
    if (IS("hunt"))
        return hunt();
    if (HAS("storm", first))
        return storm(first);
    if (HAS("eat-in-child", first))
        return eat_in_child(atol(first));
#endif
    fprintf(stderr, "probe: unknown command, or too few arguments: %s\n", command);
    return 2;
}
