/* One scenario by name, after a line of input. Two TCP connections to itself; what is written at one end is read at the other. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "library.h"

static char buf[4096];
static size_t done;
static jmp_buf out;

static void connection(int ends[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	bind(listener, (struct sockaddr *)&address, size);
	listen(listener, 1);
	getsockname(listener, (struct sockaddr *)&address, &size);
	ends[0] = socket(AF_INET, SOCK_STREAM, 0);
	connect(ends[0], (struct sockaddr *)&address, size);
	ends[1] = accept(listener, 0, 0);
	close(listener);
}

static void leave(void)
{
	longjmp(out, 1);
}

int main(int count, char **arguments)
{
	int first[2], second[2];
	SSL *ssl, *inner;

	connection(first);
	connection(second);
	puts("up");
	fflush(stdout);
	fgets(buf, sizeof(buf), stdin);
	ssl = SSL_new(first[0], 0);
	if (count < 2)
		return 2;
	if (!strcmp(arguments[1], "plain")) {
		SSL_write(ssl, "one", 3);
		SSL_write_ex(ssl, "two", 3, &done);
		write(first[1], "three", 5);
		SSL_read(ssl, buf, 2);
		SSL_read_ex(ssl, buf, sizeof(buf), &done);
	} else if (!strcmp(arguments[1], "inside")) { /* TLS in TLS */
		inner = SSL_new(-1, ssl);
		SSL_write(inner, "deep", 4);
	} else if (!strcmp(arguments[1], "rebind")) {
		SSL_write(ssl, "one", 3);
		ssl->fd = second[0];
		SSL_write(ssl, "two", 3);
	} else if (!strcmp(arguments[1], "leave")) {
		SSL_write(ssl, "one", 3);
		write(first[1], "lost", 4);
		inside = leave;
		if (!setjmp(out))
			SSL_read(ssl, buf, sizeof(buf));
		write(first[1], "seen", 4);
		SSL_read(ssl, buf, sizeof(buf));
	} else if (!strcmp(arguments[1], "free")) {
		SSL_write(ssl, "one", 3);
		SSL_free(ssl);
		ssl = SSL_new(second[0], 0);
		SSL_write(ssl, "two", 3);
		SSL_free(0);
	} else if (!strcmp(arguments[1], "fails")) {
		shutdown(first[1], SHUT_WR);
		SSL_read(ssl, buf, sizeof(buf));
	} else {
		return 3;
	}
	return 0;
}
