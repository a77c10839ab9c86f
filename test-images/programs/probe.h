/* What the parts of the probe share. */
#ifndef PROBE_H
#define PROBE_H

/* Says on stderr what failed and why (errno); returns the exit code for it. */
int fail(const char *what);

/* Prints "ready" on a line of its own. */
void ready(void);

/* Whether stdin, stdout and stderr are terminals: "1 1 1". */
int show_isatty(void);

/* Takes MEGABYTES of memory and touches each page of it. */
int eat(long megabytes);

#ifndef __wasi__
/* What the process sees of its terminal, a line each. */
int show_terminal(void);

/* Prints the terminal's size, and again after each of COUNT changes. */
int show_sizes(int count);

/* Puts the terminal into raw mode and sends back COUNT bytes of what it reads. */
int raw(long count);

/* How the kernel runs the process, a line for each property. */
int show_scheduling(void);

/* Makes the system call NUMBER with an argument, by the way of 64-bit and of 32-bit programs. */
int call(long number, unsigned long argument);
int call32(long number, unsigned long argument);

/* What a hostile image tries: see attack.c. */
int swap(const char *first, const char *second);
int peek(const char *pid);
int hunt(void);
int storm(const char *file);

/* Has a child do what eat() does; prints the signal that ended it, then waits to be ended too. */
int eat_in_child(long megabytes);
#endif

#endif
