/*
 * A TLS library without TLS: the shape of OpenSSL's functions over a plain
 * socket, so that a test can make calls nest, end early or change their socket.
 */
#include <setjmp.h>
#include <stdlib.h>
#include <unistd.h>
#include "library.h"

void (*inside)(void); /* called in the middle of a read, once */

static int __attribute__((noipa)) read_internal(SSL *ssl, void *buf, size_t num, size_t *done)
{
	ssize_t got = ssl->under ? SSL_read(ssl->under, buf, num) : read(ssl->fd, buf, num);

	if (inside) {
		void (*call)(void) = inside;

		inside = 0;
		call();
	}
	if (got <= 0)
		return -1;
	*done = got;
	return 1;
}

static int __attribute__((noipa)) write_internal(SSL *ssl, const void *buf, size_t num, size_t *done)
{
	ssize_t put = ssl->under ? SSL_write(ssl->under, buf, num) : write(ssl->fd, buf, num);

	if (put <= 0)
		return -1;
	*done = put;
	return 1;
}

int SSL_read(SSL *ssl, void *buf, int num)
{
	size_t done;
	int result = read_internal(ssl, buf, num, &done);

	return result > 0 ? (int)done : result;
}

int SSL_write(SSL *ssl, const void *buf, int num)
{
	size_t done;
	int result = write_internal(ssl, buf, num, &done);

	return result > 0 ? (int)done : result;
}

#ifdef FORWARDING /* as LibreSSL does */
int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *done)
{
	int result = SSL_read(ssl, buf, num);

	*done = result;
	return result > 0;
}

int SSL_write_ex(SSL *ssl, const void *buf, size_t num, size_t *done)
{
	int result = SSL_write(ssl, buf, num);

	*done = result;
	return result > 0;
}
#else
int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *done)
{
	int result = read_internal(ssl, buf, num, done);

	return result < 0 ? 0 : result;
}

int SSL_write_ex(SSL *ssl, const void *buf, size_t num, size_t *done)
{
	int result = write_internal(ssl, buf, num, done);

	return result < 0 ? 0 : result;
}
#endif

SSL *SSL_new(int fd, SSL *under)
{
	SSL *ssl = aligned_alloc(4096, 4096);

	ssl->fd = fd;
	ssl->under = under;
	return ssl;
}

void SSL_free(SSL *ssl)
{
	if (ssl)
		free(ssl);
}
