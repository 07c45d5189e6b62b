/* Shared by the peers in C: the service, the listening socket and the descriptor limit. */
#ifndef SERVER_H
#define SERVER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_BYTES = 64 << 10, BLOCK_BYTES = 64 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static inline unsigned char upper(unsigned char byte) {
    return byte - (unsigned char)(((unsigned char)(byte - 'a') < 26) << 5);
}

/* Whole blocks first: their fixed length is what lets -O2 make vector code of the inner loop. */
static void uppercase(unsigned char *bytes, size_t length) {
    for (; length >= BLOCK_BYTES; bytes += BLOCK_BYTES, length -= BLOCK_BYTES)
        for (int i = 0; i < BLOCK_BYTES; i++) bytes[i] = upper(bytes[i]);
    for (size_t i = 0; i < length; i++) bytes[i] = upper(bytes[i]);
}

/* Returns a bound, non-blocking socket in the SO_REUSEPORT group of the port. */
static int bind_to(unsigned short port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    /* Inherited by every connection, which saves a call for each. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
    return fd;
}

/* Raises the descriptor limit to its maximum and returns it. */
static rlim_t raise_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

/* Reports to the parent process that the listener accepts connections. */
static void ready(void) {
    puts("ready");
    fflush(stdout);
}

#endif
