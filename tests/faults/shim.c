/* A medium that fails as it is told to, below whatever a process is made of: preloaded, it stands
 * between the process (Python, LMDB, our C library) and libc for files below FAULT_ROOT.
 *
 * FAULT_CONTROL  a file of 32-bit words, shared with the test; see `words`
 * FAULT_JOURNAL  if set, everything done to the files is written there: what `powerloss.py` makes
 *                images of a disk from that has lost its power
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum words { OPS, KILL_AT, WRITE_ERRNO, SYNC_ERRNO, OPEN_ERRNO, SPACE_ERRNO, READ_ERRNO,
             PER_MILLE, SEED, WORDS };
enum kinds { WRITE = 1, WRITTEN_THROUGH, SYNC_BEGIN, SYNC_END, TRUNCATE, PUNCH, CREATE, MKDIR,
             RENAME, UNLINK };

struct entry { uint32_t kind, name_bytes; uint64_t id, inode, offset, size; };

static volatile uint32_t *control;
static uint32_t unused[WORDS];
static char root[PATH_MAX];
static size_t root_bytes;
static int journal = -1;
static uint64_t last_id;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    control = unused;
    const char *given = getenv("FAULT_ROOT"), *file = getenv("FAULT_CONTROL");
    if (!given || !file)
        return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    void *mapped = mmap(NULL, WORDS * 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || mapped == MAP_FAILED)
        abort();
    close(fd);
    control = mapped;
    root_bytes = (size_t)snprintf(root, sizeof root, "%s", given);
    if (getenv("FAULT_JOURNAL"))
        journal = (int)syscall(SYS_openat, AT_FDCWD, getenv("FAULT_JOURNAL"),
                               O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int below(const char *path) {
    return root_bytes && strncmp(path, root, root_bytes) == 0 &&
           (path[root_bytes] == '/' || path[root_bytes] == 0);
}

static int path_of(int fd, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return below(path);
}

static int absolute(int dir, const char *path, char *out) {
    char base[PATH_MAX];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else if (dir == AT_FDCWD) {
        if (!getcwd(base, sizeof base) || strlen(base) + strlen(path) + 2 > PATH_MAX)
            return 0;
        snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    } else {
        path_of(dir, base);
        snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    }
    return below(out);
}

/* Counts one thing done to the medium; the process dies here when it was told to. */
static void step(void) {
    uint32_t now = __atomic_add_fetch(&control[OPS], 1, __ATOMIC_RELAXED);
    if (control[KILL_AT] && now >= control[KILL_AT])
        syscall(SYS_kill, getpid(), SIGKILL);
}

static int fails(enum words which) {
    uint32_t code = control[which];
    if (!code)
        return 0;
    if (control[PER_MILLE] && control[PER_MILLE] < 1000) {
        uint32_t x = control[SEED] | 1;
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        control[SEED] = x;
        if (x % 1000 >= control[PER_MILLE])
            return 0;
    }
    errno = (int)code;
    return 1;
}

static void put(const void *bytes, size_t size) {
    while (size > 0) {
        ssize_t done = syscall(SYS_write, journal, bytes, size);
        if (done <= 0)
            abort();
        bytes = (const char *)bytes + done, size -= (size_t)done;
    }
}

/* With the mutex held. `parts` are the data of a write. */
static uint64_t note(enum kinds kind, uint64_t inode, uint64_t offset, uint64_t size,
                     const char *name, const struct iovec *parts, int count) {
    if (journal < 0)
        return 0;
    struct entry entry = {kind, name ? (uint32_t)strlen(name) : 0, ++last_id, inode, offset, size};
    put(&entry, sizeof entry);
    put(name, entry.name_bytes);
    for (uint64_t left = size; kind == WRITE && count > 0 && left > 0; parts++, count--) {
        uint64_t now = parts->iov_len < left ? parts->iov_len : left;
        put(parts->iov_base, now);
        left -= now;
    }
    return last_id;
}

static uint64_t note_alone(enum kinds kind, int fd, uint64_t offset, uint64_t size,
                           const struct iovec *parts, int count) {
    struct stat status;
    if (journal < 0 || fstat(fd, &status) != 0)
        return 0;
    pthread_mutex_lock(&mutex);
    uint64_t id = note(kind, status.st_ino, offset, size, NULL, parts, count);
    pthread_mutex_unlock(&mutex);
    return id;
}

/* ---- data */

static ssize_t write_through(int fd, const struct iovec *parts, int count, off_t offset) {
    char path[PATH_MAX];
    if (!path_of(fd, path))
        return syscall(SYS_pwritev, fd, parts, count, (long)offset, 0L);
    step();
    uint64_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    if (fails(WRITE_ERRNO)) {
        int code = errno;
        if (size >= 8192 && !(fcntl(fd, F_GETFL) & O_DIRECT)) { /* half of it is there already */
            struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2};
            note_alone(WRITE, fd, (uint64_t)offset, half.iov_len, &half, 1);
            syscall(SYS_pwritev, fd, &half, 1, (long)offset, 0L);
        }
        errno = code;
        return -1;
    }
    uint64_t id = note_alone(WRITE, fd, (uint64_t)offset, size, parts, count);
    ssize_t done = syscall(SYS_pwritev, fd, parts, count, (long)offset, 0L);
    if (done == (ssize_t)size && (fcntl(fd, F_GETFL) & O_DSYNC))
        note_alone(WRITTEN_THROUGH, fd, id, 0, NULL, 0);
    return done;
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_through(fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return write_through(fd, parts, count, offset);
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
    struct iovec part = {(void *)bytes, size};
    return write_through(fd, &part, 1, offset);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
    return pwrite(fd, bytes, size, offset);
}

static ssize_t write_here(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at < 0 || !path_of(fd, path))
        return syscall(SYS_writev, fd, parts, count);
    ssize_t done = write_through(fd, parts, count, at);
    if (done > 0)
        lseek(fd, at + done, SEEK_SET);
    return done;
}
ssize_t write(int fd, const void *bytes, size_t size) {
    if (!root_bytes)
        return syscall(SYS_write, fd, bytes, size);
    struct iovec part = {(void *)bytes, size};
    return write_here(fd, &part, 1);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return write_here(fd, parts, count);
}

static int reading_fails(int fd) {
    char path[PATH_MAX];
    return control[READ_ERRNO] && path_of(fd, path) && fails(READ_ERRNO);
}
ssize_t pread(int fd, void *bytes, size_t size, off_t offset) {
    return reading_fails(fd) ? -1 : syscall(SYS_pread64, fd, bytes, size, offset);
}
ssize_t pread64(int fd, void *bytes, size_t size, off64_t offset) {
    return pread(fd, bytes, size, offset);
}
ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset) {
    return reading_fails(fd) ? -1 : syscall(SYS_preadv, fd, parts, count, (long)offset, 0L);
}
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return preadv(fd, parts, count, offset);
}

static int sync_with(int fd, long call) {
    char path[PATH_MAX];
    if (!path_of(fd, path))
        return (int)syscall(call, fd);
    step();
    if (fails(SYNC_ERRNO))
        return -1;
    struct stat status;
    uint64_t id = 0;
    if (journal >= 0 && fstat(fd, &status) == 0) {
        pthread_mutex_lock(&mutex);
        id = note(SYNC_BEGIN, status.st_ino, 0, 0, path, NULL, 0);
        pthread_mutex_unlock(&mutex);
    }
    int result = (int)syscall(call, fd);
    if (result == 0)
        note_alone(SYNC_END, fd, id, 0, NULL, 0);
    return result;
}
int fsync(int fd) { return sync_with(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_with(fd, SYS_fdatasync); }

int ftruncate(int fd, off_t size) {
    char path[PATH_MAX];
    if (path_of(fd, path)) {
        step();
        if (fails(SPACE_ERRNO))
            return -1;
        note_alone(TRUNCATE, fd, (uint64_t)size, 0, NULL, 0);
    }
    return (int)syscall(SYS_ftruncate, fd, size);
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int fallocate(int fd, int mode, off_t offset, off_t size) {
    char path[PATH_MAX];
    if (path_of(fd, path)) {
        step();
        if (fails(SPACE_ERRNO))
            return -1;
        if (mode & FALLOC_FL_PUNCH_HOLE)
            note_alone(PUNCH, fd, (uint64_t)offset, (uint64_t)size, NULL, 0);
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, size);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t size) {
    return fallocate(fd, mode, offset, size);
}

/* ---- names */

static int open_below(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat status;
    if (!root_bytes || !absolute(dir, path, full))
        return (int)syscall(SYS_openat, dir, path, flags, mode);
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT))
        step();
    if (!(flags & O_DIRECTORY) && fails(OPEN_ERRNO)) {
        /* A medium that can only be read is still read. */
        if (control[OPEN_ERRNO] != EROFS || (flags & O_ACCMODE) != O_RDONLY)
            return -1;
    }
    if (journal < 0 || !(flags & (O_CREAT | O_TRUNC)))
        return (int)syscall(SYS_openat, dir, path, flags, mode);
    pthread_mutex_lock(&mutex);
    int there = stat(full, &status) == 0;
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    int code = errno;
    if (fd >= 0 && fstat(fd, &status) == 0 && !there)
        note(CREATE, status.st_ino, 0, 0, full, NULL, 0);
    else if (fd >= 0 && (flags & O_TRUNC))
        note(TRUNCATE, status.st_ino, 0, 0, NULL, NULL, 0);
    pthread_mutex_unlock(&mutex);
    errno = code;
    return fd;
}

#define MODE(flags, mode)                                                                         \
    mode_t mode = 0;                                                                              \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                      \
        va_list more;                                                                             \
        va_start(more, flags);                                                                    \
        mode = va_arg(more, mode_t);                                                              \
        va_end(more);                                                                             \
    }
int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_below(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_below(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_below(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_below(dir, path, flags | O_LARGEFILE, mode);
}

static int named(enum kinds kind, const char *from, const char *to, long call, mode_t mode) {
    char full[PATH_MAX], target[PATH_MAX], both[2 * PATH_MAX + 1];
    int ours = root_bytes && absolute(AT_FDCWD, from, full);
    if (ours) {
        step();
        if (control[OPEN_ERRNO] == EROFS && fails(OPEN_ERRNO))
            return -1;
    }
    pthread_mutex_lock(&mutex);
    int result = kind == RENAME ? (int)syscall(call, from, to)
               : kind == MKDIR  ? (int)syscall(call, from, mode)
                                : (int)syscall(call, from);
    int code = errno;
    if (ours && result == 0) {
        if (kind == RENAME) {
            absolute(AT_FDCWD, to, target);
            snprintf(both, sizeof both, "%s\n%s", full, target);
        }
        note(kind, 0, 0, 0, kind == RENAME ? both : full, NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    errno = code;
    return result;
}
int rename(const char *from, const char *to) { return named(RENAME, from, to, SYS_rename, 0); }
int unlink(const char *path) { return named(UNLINK, path, NULL, SYS_unlink, 0); }
int rmdir(const char *path) { return named(UNLINK, path, NULL, SYS_rmdir, 0); }
int mkdir(const char *path, mode_t mode) { return named(MKDIR, path, NULL, SYS_mkdir, mode); }
