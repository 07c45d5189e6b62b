/* The floor: an upper-casing echo server on epoll with nothing that could be left out.
 *
 * One thread, one listener in the SO_REUSEPORT group of its port, level-triggered readiness: a
 * message costs one recv, one send and its share of one epoll_wait. Received bytes stay in one
 * shared buffer; only what the kernel does not take is kept for the connection, which is then not
 * read until that is gone. No limits, no timeouts, no counters, no close handshake: what a server
 * that keeps promises needs on top is measured against this.
 *
 * Run as: c_epoll PORT; says "ready" on standard output once it listens.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_BYTES = 64 << 10, BLOCK_BYTES = 64, EVENTS = 1024, ACCEPTS = 64 };

/* What a connection still has to send; indexed by descriptor. */
struct rest {
    char *bytes;
    unsigned at, end;
};

static char buffer[BUFFER_BYTES];
static struct rest *rests;
static int epoll;

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

static void watch(int fd, unsigned events, int how) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, how, fd, &event) != 0) fail("epoll_ctl");
}

static void end(int fd) {
    free(rests[fd].bytes);
    rests[fd] = (struct rest){0};
    close(fd);
}

/* Keeps what the kernel did not take and waits for room instead of input. */
static void keep(int fd, const char *bytes, size_t length) {
    char *kept = malloc(length);
    if (!kept) fail("malloc");
    memcpy(kept, bytes, length);
    rests[fd] = (struct rest){.bytes = kept, .end = (unsigned)length};
    watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
}

static void flush(int fd) {
    struct rest *rest = &rests[fd];
    ssize_t sent = send(fd, rest->bytes + rest->at, rest->end - rest->at, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return end(fd);
    if (sent > 0) rest->at += (unsigned)sent;
    if (rest->at < rest->end) return;
    free(rest->bytes);
    *rest = (struct rest){0};
    watch(fd, EPOLLIN, EPOLL_CTL_MOD);
}

static void answer(int fd) {
    ssize_t received = recv(fd, buffer, sizeof buffer, 0);
    if (received < 0 && errno == EAGAIN) return;
    if (received <= 0) return end(fd);
    uppercase((unsigned char *)buffer, (size_t)received);
    ssize_t sent = send(fd, buffer, (size_t)received, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return end(fd);
    if (sent < 0) sent = 0;
    if (sent < received) keep(fd, buffer + sent, (size_t)(received - sent));
}

static void accept_some(int listener) {
    for (int i = 0; i < ACCEPTS; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static int listen_on(unsigned short port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    /* Inherited by every connection, which saves a call for each. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
    if (listen(fd, SOMAXCONN) != 0) fail("listen");
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    rests = calloc(limit.rlim_cur, sizeof *rests);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on((unsigned short)atoi(argv[1]));
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    puts("ready");
    fflush(stdout);
    for (;;) {
        static struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) accept_some(fd);
            else if (rests[fd].bytes) flush(fd);
            else answer(fd);
        }
    }
}
