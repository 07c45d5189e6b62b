/* The floor: an upper-casing echo server on epoll with nothing that could be left out.
 *
 * One thread, one listener in the SO_REUSEPORT group of its port, level-triggered readiness: a
 * message costs one recv, one send and its share of one epoll_wait. Received bytes stay in one
 * shared buffer; only what the kernel does not take is kept for the connection, which is then not
 * read until that is gone. No limits, no timeouts, no counters, no close handshake: what a server
 * that keeps promises needs on top is measured against this.
 *
 * Run as: c_epoll PORT; prints "ready" once it listens.
 */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <sys/epoll.h>

enum { EVENTS = 1024, ACCEPTS = 64 };

/* What a connection still has to send; indexed by descriptor. */
struct rest {
    char *bytes;
    unsigned at, end;
};

static char buffer[BUFFER_BYTES];
static struct rest *rests;
static int epoll;

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

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    rests = calloc(raise_limit(), sizeof *rests);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = bind_to((unsigned short)atoi(argv[1]));
    if (listen(listener, SOMAXCONN) != 0) fail("listen");
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    ready();
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
