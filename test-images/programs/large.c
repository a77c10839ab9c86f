/* Beside a program: what makes its memory larger than a container may allow, though nothing uses it. */
char large[64 << 20] __attribute__((used, retain));
