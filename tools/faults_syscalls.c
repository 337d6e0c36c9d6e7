/* Preloaded into the fault loops: the n-th system call that changes a file under a folder kills the process or fails.
 * Reaches what Python cannot: the writes and syncs inside SQLite. Disarmed until faults_arm is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static long at = 0, calls = 0;
static int action = 0; /* 0 count, 1 die before, 2 write half and die, otherwise: -errno, from then on */

void faults_arm(const char *under, long n, int what) {
    strncpy(folder, under, sizeof folder - 1);
    at = n; action = what; calls = 0;
}
long faults_calls(void) { return calls; }

static int under(const char *path) { return folder[0] && strncmp(path, folder, strlen(folder)) == 0; }
static int under_fd(int fd) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return under(path);
}
/* 1: fail with errno set; 2: write half, then die */
static int hit(int ours) {
    if (!ours) return 0;
    calls++;
    if (action == 0 || calls < at) return 0;
    if (action < 0) { errno = -action; return 1; }
    if (calls > at) return 0;
    if (action == 2) return 2;
    _exit(77);
}
#define NEXT(name) static __typeof__(name) *next; if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *b, size_t n) {
    NEXT(write);
    int h = hit(under_fd(fd));
    if (h == 1) return -1;
    if (h == 2) { next(fd, b, n / 2); _exit(77); }
    return next(fd, b, n);
}
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) {
    NEXT(pwrite64);
    int h = hit(under_fd(fd));
    if (h == 1) return -1;
    if (h == 2) { next(fd, b, n / 2, o); _exit(77); }
    return next(fd, b, n, o);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { return pwrite64(fd, b, n, o); }
#define DIES(h) do { if (h == 1) return -1; if (h == 2) _exit(77); } while (0)
int fsync(int fd) {
    NEXT(fsync);
    int h = hit(under_fd(fd)); DIES(h);
    return next(fd);
}
int fdatasync(int fd) {
    NEXT(fdatasync);
    int h = hit(under_fd(fd)); DIES(h);
    return next(fd);
}
int ftruncate64(int fd, off_t n) {
    NEXT(ftruncate64);
    int h = hit(under_fd(fd)); DIES(h);
    return next(fd, n);
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }
int rename(const char *a, const char *b) {
    NEXT(rename);
    int h = hit(under(b)); DIES(h);
    return next(a, b);
}
int renameat(int x, const char *a, int y, const char *b) {
    NEXT(renameat);
    int h = hit(under(b)); DIES(h);
    return next(x, a, y, b);
}
int unlink(const char *a) {
    NEXT(unlink);
    int h = hit(under(a)); DIES(h);
    return next(a);
}
int mkdir(const char *a, mode_t m) {
    NEXT(mkdir);
    int h = hit(under(a)); DIES(h);
    return next(a, m);
}
