/* An upper-casing echo server on libuv, as its authors would write one.
 *
 * One thread, one listener in the SO_REUSEPORT group of its port. Received bytes stay in one shared
 * buffer and are sent at once with uv_try_write; only what the kernel does not accept is copied and
 * written with uv_write, and the connection is not read until that is done.
 *
 * Run as: c_libuv PORT; prints "ready" once it listens.
 */
#define _GNU_SOURCE
#include "server.h"

#include <uv.h>

static char buffer[BUFFER_BYTES];

/* Output that the kernel did not accept at once. */
struct rest {
    uv_write_t write;
    char bytes[];
};

static void on_read(uv_stream_t *stream, ssize_t received, const uv_buf_t *shared);

static void on_closed(uv_handle_t *handle) { free(handle); }

static void end(uv_stream_t *stream) {
    if (!uv_is_closing((uv_handle_t *)stream)) uv_close((uv_handle_t *)stream, on_closed);
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *into) {
    (void)handle, (void)suggested;
    *into = uv_buf_init(buffer, sizeof buffer);
}

static void on_written(uv_write_t *write, int status) {
    uv_stream_t *stream = write->handle;
    free(write);
    if (status < 0) end(stream);
    else uv_read_start(stream, on_allocate, on_read);
}

static void keep(uv_stream_t *stream, const char *bytes, size_t length) {
    struct rest *rest = malloc(sizeof *rest + length);
    if (!rest) fail("malloc");
    memcpy(rest->bytes, bytes, length);
    uv_read_stop(stream);
    uv_buf_t output = uv_buf_init(rest->bytes, (unsigned)length);
    if (uv_write(&rest->write, stream, &output, 1, on_written) == 0) return;
    free(rest);
    end(stream);
}

static void on_read(uv_stream_t *stream, ssize_t received, const uv_buf_t *shared) {
    if (received == 0) return;
    if (received < 0) return end(stream);
    uppercase((unsigned char *)shared->base, (size_t)received);
    uv_buf_t output = uv_buf_init(shared->base, (unsigned)received);
    int sent = uv_try_write(stream, &output, 1);
    if (sent == UV_EAGAIN) sent = 0;
    if (sent < 0) return end(stream);
    if (sent < received) keep(stream, shared->base + sent, (size_t)(received - sent));
}

static void on_connection(uv_stream_t *listener, int status) {
    if (status < 0) return;
    uv_tcp_t *client = malloc(sizeof *client);
    if (!client) fail("malloc");
    uv_tcp_init(listener->loop, client);
    if (uv_accept(listener, (uv_stream_t *)client) == 0)
        uv_read_start((uv_stream_t *)client, on_allocate, on_read);
    else end((uv_stream_t *)client);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    raise_limit();
    uv_loop_t *loop = uv_default_loop();
    uv_tcp_t listener;
    uv_tcp_init(loop, &listener);
    uv_tcp_open(&listener, bind_to((unsigned short)atoi(argv[1])));
    if (uv_listen((uv_stream_t *)&listener, SOMAXCONN, on_connection) != 0) fail("listen");
    ready();
    return uv_run(loop, UV_RUN_DEFAULT);
}
