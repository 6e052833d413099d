// SPDX-License-Identifier: Apache-2.0
// Waits up to SLOW_US microseconds where SQLite could be stopped by any scheduler: after it gives a lock of a log back,
// and where a checkpoint unmaps the database after it has read the log's header.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_a_while(void) {
  const char *most = getenv("SLOW_US");
  if (most) usleep(random() % atoi(most));
}

int munmap(void *at, size_t size) {
  int (*real)(void *, size_t) = dlsym(RTLD_NEXT, "munmap");
  wait_a_while();
  return real(at, size);
}

int fcntl64(int file, int command, ...) {
  int (*real)(int, int, ...) = dlsym(RTLD_NEXT, "fcntl64");
  va_list more;
  va_start(more, command);
  struct flock *lock = va_arg(more, struct flock *);
  va_end(more);
  int result = real(file, command, lock);
  // the locks of a log are bytes 120 to 127 of the -shm: sqlite.org/walformat.html, "WAL Locks"
  if (command == F_SETLK && lock->l_type == F_UNLCK && lock->l_start >= 120 && lock->l_start < 128) wait_a_while();
  return result;
}
