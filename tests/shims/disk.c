// SPDX-License-Identifier: Apache-2.0
// A disk that fails: below the folder DISK, writes end with errno DISK_WRITE and reads with DISK_READ (0: they work).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int file, const char *which) {
  const char *number = getenv(which), *folder = getenv("DISK");
  if (!folder || !number || !atoi(number)) return 0;
  char link[64], path[PATH_MAX + 1];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, PATH_MAX);
  if (length < 0) return 0;
  path[length] = 0;
  if (strncmp(path, folder, strlen(folder))) return 0;
  errno = atoi(number);
  return 1;
}

#define WRAP(type, name, which, parameters, arguments)      \
  type name parameters {                                    \
    type(*real) parameters = dlsym(RTLD_NEXT, #name);       \
    return fails(file, which) ? (type)-1 : real arguments;  \
  }

WRAP(ssize_t, write, "DISK_WRITE", (int file, const void *from, size_t size), (file, from, size))
WRAP(ssize_t, pwrite64, "DISK_WRITE", (int file, const void *from, size_t size, off_t at), (file, from, size, at))
WRAP(int, ftruncate64, "DISK_WRITE", (int file, off_t size), (file, size))
WRAP(int, fsync, "DISK_WRITE", (int file), (file))
WRAP(int, fdatasync, "DISK_WRITE", (int file), (file))
WRAP(ssize_t, read, "DISK_READ", (int file, void *to, size_t size), (file, to, size))
WRAP(ssize_t, pread64, "DISK_READ", (int file, void *to, size_t size, off_t at), (file, to, size, at))
