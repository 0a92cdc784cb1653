#include <stddef.h>

typedef struct ssl {
	int fd;
	struct ssl *under; /* the connection this one runs inside */
} SSL;

extern void (*inside)(void);
int SSL_read(SSL *, void *, int);
int SSL_write(SSL *, const void *, int);
int SSL_read_ex(SSL *, void *, size_t, size_t *);
int SSL_write_ex(SSL *, const void *, size_t, size_t *);
SSL *SSL_new(int, SSL *);
void SSL_free(SSL *);
