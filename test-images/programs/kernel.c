/* What the kernel says of how it runs this process, and what it answers to single calls. Linux only. */
#define _GNU_SOURCE
#include "probe.h"
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

/* A line for each property, by the names of the OCI runtime spec. */
int show_scheduling(void) {
    struct {
        unsigned size, policy;
        unsigned long long flags;
        int nice;
        unsigned priority;
        unsigned long long runtime, deadline, period;
        unsigned clamps[2];
    } attr = {0};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) < 0)
        return fail("sched_getattr");
    printf("scheduler %u %llu %d %u\n", attr.policy, attr.flags, attr.nice, attr.priority);
    if (attr.policy == 6)
        printf("deadline %llu %llu %llu\n", attr.runtime, attr.deadline, attr.period);
    long io = syscall(SYS_ioprio_get, 1, 0);
    if (io < 0)
        return fail("ioprio_get");
    printf("ioPriority %ld %ld\n", io >> 13, io & 0x1fff);
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) < 0)
        return fail("sched_getaffinity");
    printf("cpus");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &cpus))
            printf(" %d", cpu);
    struct utsname names;
    uname(&names);
    printf("\nmachine %s\n", names.machine);
    int mode = 0;
    unsigned long nodes[16] = {0};
    if (syscall(SYS_get_mempolicy, &mode, nodes, 8 * sizeof nodes + 1, 0, 0) < 0)
        return fail("get_mempolicy");
    printf("memoryPolicy %#x %#lx\n", mode, nodes[0]);
    return 0;
}

/* A call by its number, with an argument and otherwise zeroes: "ok" or what is wrong. */
int call(long number, unsigned long argument) {
    puts(syscall(number, argument, 0, 0, 0, 0, 0) < 0 ? strerror(errno) : "ok");
    return 0;
}

/* The same by the way of 32-bit programs, on x86_64. */
int call32(long number, unsigned long argument) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(argument), "c"(0), "d"(0) : "memory", "r8", "r9", "r10", "r11");
    puts(result < 0 ? strerror((int)-result) : "ok");
    return 0;
#else
    (void)number, (void)argument;
    puts("no such calls");
    return 0;
#endif
}
