/* The least that a closed-loop load generator can do: one thread, level-triggered epoll, one
 * receive and one send a message, nothing checked, nothing timed, nothing recorded. What a real one
 * costs beyond this is its own overhead.
 *
 * Usage: minimal PORT CONNECTIONS BYTES SECONDS
 * Prints: messages, CPU nanoseconds in that time, nanoseconds of wall clock. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, BYTES_MAX = 65536 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static long long now(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: minimal PORT CONNECTIONS BYTES SECONDS\n");
        return 2;
    }
    int connections = atoi(argv[2]);
    int bytes = atoi(argv[3]);
    double seconds = atof(argv[4]);
    if (connections < 1 || bytes < 1 || bytes > BYTES_MAX)
        return 2;
    static char message[BYTES_MAX], buffer[BYTES_MAX];
    memset(message, 'a', sizeof message);
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int loop = epoll_create1(EPOLL_CLOEXEC);
    /* How much of the answer is still to come, by connection. */
    int *missing = calloc(connections, sizeof *missing);
    int *sockets = calloc(connections, sizeof *sockets);
    if (!missing || !sockets)
        fail("calloc");
    for (int at = 0; at < connections; at++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
            fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = at};
        if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event) < 0)
            fail("epoll_ctl");
        sockets[at] = fd;
        missing[at] = bytes;
        if (send(fd, message, bytes, MSG_NOSIGNAL) != bytes)
            fail("send");
    }
    long long begun = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    long long until = begun + (long long)(seconds * 1e9), messages = 0, at_last = begun;
    struct epoll_event events[EVENTS];
    while ((at_last = now(CLOCK_MONOTONIC)) < until) {
        int count = epoll_wait(loop, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            int at = events[i].data.u32;
            ssize_t got = recv(sockets[at], buffer, missing[at], MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got <= 0)
                fail("recv");
            missing[at] -= got;
            if (missing[at] == 0) {
                messages++;
                missing[at] = bytes;
                if (send(sockets[at], message, bytes, MSG_NOSIGNAL) != bytes)
                    fail("send");
            }
        }
    }
    printf("%lld %lld %lld\n", messages, now(CLOCK_PROCESS_CPUTIME_ID) - cpu, at_last - begun);
    return 0;
}
