/* The records of a TLS connection between a socket and memory: the compiled part of lifl.tls.records.
 *
 * The cipher, the keys and all of the protocol are OpenSSL's.  The connection is Python's `ssl.SSLObject`, which has made
 * its handshake on memory; the library that Python loaded for it is called here, by addresses that the caller has looked
 * up (`lifl_records_load`), so that this needs no header of OpenSSL's.  The few functions that are used have had the
 * same arguments since OpenSSL 1.1.1.
 *
 * What it saves.  OpenSSL takes what a record is made of from a BIO: Python's is memory, which costs two more copies of
 * each byte, and a change of the interpreter's lock for each record of 16 KiB.  Within a call of this library BIOs of
 * its own stand in their place: one that takes many records at a time from the socket, into a buffer that stays in the
 * core's cache, and hands them to OpenSSL, which decrypts in place and copies to where they are to be; and one that puts
 * the records that are made one after the other into a buffer that is sent at once.  Before a call ends Python's are
 * back.
 *
 * The caller holds a lock of the connection's, and none of the interpreter's. */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

typedef struct ssl_st SSL;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;

/* In the order of `FUNCTIONS` in records.py. */
static struct {
    int (*SSL_read_ex)(SSL *, void *, size_t, size_t *);
    int (*SSL_write_ex)(SSL *, const void *, size_t, size_t *);
    int (*SSL_get_error)(const SSL *, int);
    int (*SSL_has_pending)(const SSL *);
    BIO *(*SSL_get_rbio)(const SSL *);
    BIO *(*SSL_get_wbio)(const SSL *);
    void (*SSL_set0_rbio)(SSL *, BIO *);
    void (*SSL_set0_wbio)(SSL *, BIO *);
    void (*SSL_set_read_ahead)(SSL *, int);
    BIO_METHOD *(*BIO_meth_new)(int, const char *);
    int (*BIO_meth_set_read)(BIO_METHOD *, int (*)(BIO *, char *, int));
    int (*BIO_meth_set_write)(BIO_METHOD *, int (*)(BIO *, const char *, int));
    int (*BIO_meth_set_ctrl)(BIO_METHOD *, long (*)(BIO *, int, long, void *));
    BIO *(*BIO_new)(const BIO_METHOD *);
    int (*BIO_free)(BIO *);
    int (*BIO_up_ref)(BIO *);
    void (*BIO_set_data)(BIO *, void *);
    void *(*BIO_get_data)(BIO *);
    void (*BIO_set_init)(BIO *, int);
    void (*BIO_set_flags)(BIO *, int);
    void (*BIO_clear_flags)(BIO *, int);
    int (*BIO_read)(BIO *, void *, int);
    size_t (*BIO_ctrl_pending)(BIO *);
    unsigned long (*ERR_peek_last_error)(void);
    void (*ERR_clear_error)(void);
} openssl;

#define FUNCTIONS (sizeof openssl / sizeof(void (*)(void)))
#define BIO_SOURCE 0x0400 /* BIO_TYPE_SOURCE_SINK */
#define BIO_RETRY_READ (0x01 | 0x08)
#define BIO_RETRY_FLAGS 0x0F
#define BIO_FLUSH 11 /* BIO_CTRL_FLUSH */
#define SSL_WANT_READ 2
#define SSL_SYSTEM 5
#define SSL_END 6 /* SSL_ERROR_ZERO_RETURN */

#define RECORD_PLAIN 16384
#define RECORD_MORE 22                  /* what a full record has beside its bytes in plain */
#define LARGE_BYTES (4 * RECORD_PLAIN)  /* whoever wants so much receives a body */
#define READ_BYTES (1024 * 1024)        /* of a body, taken from the kernel at a time while data comes */
#define IDLE_READ_BYTES (4 * 1024)      /* and when there was no data in what was taken last */
#define OVERHEAD 64                     /* what a byte of data may cost in received bytes */
#define OVERHEAD_BYTES_MAX (16640 + IDLE_READ_BYTES)
#define WRITE_PLAIN (8 * RECORD_PLAIN)  /* made into records at a time, and then sent */
#define SEALED_MORE 256                 /* what a record has beside its bytes in plain, at most; and OpenSSL's own */
#define SPARES 4
#define RECORDS_MAX 16

enum outcome { DONE, AGAIN, ENDED, BUSY, INTERRUPTED, SYSTEM, FAILED };

typedef struct {
    int64_t sealed, plain; /* bytes until its end, bytes in plain that it holds */
} record;

typedef struct {
    SSL *ssl;
    BIO *receiver, *sender; /* they stand in the place of Python's within a call */
    BIO *memory;            /* Python's, meanwhile */
    int fd, flags;          /* of the call that is under way */
    int outcome, error;
    int had_data; /* what was taken from the kernel last */
    int more;     /* there is something to read whatever the descriptor says */
    int64_t overhead;
    int64_t fed; /* bytes that OpenSSL was given since there was data in them */
    int64_t wanted; /* of the call that is under way: bytes in plain */
    uint8_t *in;    /* what was received, and OpenSSL has not asked for: from `in_begin` to `in_end` */
    int64_t in_begin, in_end;
    uint8_t *out;           /* records: those from `begin` to `end` have not left */
    int64_t begin, end, room;
    record records[RECORDS_MAX];
    int records_count;
    int64_t credit; /* bytes in plain whose records have left, and of which nobody was told yet */
} channel;

static BIO_METHOD *receiving, *sending;
static uint8_t *spares[SPARES];

/* A buffer of READ_BYTES that nobody uses, or a new one: a call has it until it ends, a connection has none.  Memory that
 * is new each time costs more than to fill it. */
static uint8_t *borrowed(void)
{
    for (int i = 0; i < SPARES; i++) {
        uint8_t *found = __atomic_exchange_n(&spares[i], NULL, __ATOMIC_ACQ_REL);
        if (found)
            return found;
    }
    return malloc(READ_BYTES);
}

static void give_back(uint8_t *buffer)
{
    for (int i = 0; i < SPARES && buffer; i++)
        buffer = __atomic_exchange_n(&spares[i], buffer, __ATOMIC_ACQ_REL);
    free(buffer);
}

/* Takes from the kernel what there is; returns how many bytes, or what OpenSSL is to be told. */
static int take(channel *c, void *to, int64_t nbytes)
{
    if (c->overhead > OVERHEAD_BYTES_MAX) {
        c->outcome = BUSY;
        return -1;
    }
    if (!c->had_data && nbytes > IDLE_READ_BYTES)
        nbytes = IDLE_READ_BYTES;
    ssize_t got = recv(c->fd, to, nbytes, c->flags);
    if (got > 0) {
        c->overhead += got;
        c->had_data = 0;
        return got;
    }
    c->error = errno;
    c->outcome = !got                                        ? ENDED
                 : errno == EINTR                            ? INTERRUPTED
                 : errno == EAGAIN || errno == EWOULDBLOCK ? AGAIN
                                                             : SYSTEM;
    return got;
}

static int bio_read(BIO *bio, char *to, int nbytes)
{
    channel *c = openssl.BIO_get_data(bio);
    openssl.BIO_clear_flags(bio, BIO_RETRY_FLAGS);
    if (openssl.BIO_ctrl_pending(c->memory)) /* what came along with the handshake */
        return openssl.BIO_read(c->memory, to, nbytes);
    int got = -1;
    /* What is no data is worked off within OpenSSL, and may have an answer: not without end. */
    if (c->fed > OVERHEAD_BYTES_MAX || openssl.BIO_ctrl_pending(openssl.SSL_get_wbio(c->ssl)) > OVERHEAD_BYTES_MAX)
        c->outcome = BUSY;
    else if (!c->in)
        got = take(c, to, nbytes);
    else {
        if (c->in_begin == c->in_end) {
            int64_t records = c->wanted / RECORD_PLAIN + 1, most = c->wanted + records * RECORD_MORE;
            got = take(c, c->in, most < READ_BYTES ? most : READ_BYTES); /* so that little is left behind the body */
            c->in_begin = 0;
            c->in_end = got > 0 ? got : 0;
        }
        int64_t left = c->in_end - c->in_begin;
        if (left) {
            got = left < nbytes ? left : nbytes;
            memcpy(to, c->in + c->in_begin, got);
            c->in_begin += got;
        }
    }
    if (got < 0)
        openssl.BIO_set_flags(bio, BIO_RETRY_READ);
    else
        c->fed += got;
    return got;
}

static int has_room(channel *c, int64_t nbytes)
{
    if (c->end + nbytes <= c->room)
        return 1;
    uint8_t *larger = realloc(c->out, c->end + nbytes);
    if (!larger)
        return 0;
    c->out = larger;
    c->room = c->end + nbytes;
    return 1;
}

static int bio_write(BIO *bio, const char *from, int nbytes)
{
    channel *c = openssl.BIO_get_data(bio);
    openssl.BIO_clear_flags(bio, BIO_RETRY_FLAGS);
    if (!has_room(c, nbytes))
        return -1;
    memcpy(c->out + c->end, from, nbytes);
    c->end += nbytes;
    return nbytes;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_FLUSH;
}

/* Takes the addresses of OpenSSL's functions; returns whether there are as many as are needed. */
int lifl_records_load(void *const *addresses, int count)
{
    if (count != (int)FUNCTIONS)
        return 0;
    memcpy(&openssl, addresses, sizeof openssl);
    receiving = openssl.BIO_meth_new(BIO_SOURCE | 127, "LIFL receives");
    sending = openssl.BIO_meth_new(BIO_SOURCE | 126, "LIFL sends");
    return receiving && sending && openssl.BIO_meth_set_read(receiving, bio_read) &&
           openssl.BIO_meth_set_ctrl(receiving, bio_ctrl) && openssl.BIO_meth_set_write(sending, bio_write) &&
           openssl.BIO_meth_set_ctrl(sending, bio_ctrl);
}

void lifl_records_close(channel *c)
{
    if (c->receiver)
        openssl.BIO_free(c->receiver);
    if (c->sender)
        openssl.BIO_free(c->sender);
    free(c->in);
    free(c->out);
    free(c);
}

/* A channel of a connection whose handshake is complete; NULL when there is no memory for it. */
channel *lifl_records_open(SSL *ssl)
{
    channel *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->ssl = ssl;
    c->receiver = openssl.BIO_new(receiving);
    c->sender = openssl.BIO_new(sending);
    if (!c->receiver || !c->sender) {
        lifl_records_close(c);
        return NULL;
    }
    openssl.BIO_set_data(c->receiver, c);
    openssl.BIO_set_data(c->sender, c);
    openssl.BIO_set_init(c->receiver, 1);
    openssl.BIO_set_init(c->sender, 1);
    openssl.SSL_set_read_ahead(ssl, 1);
    c->more = openssl.BIO_ctrl_pending(openssl.SSL_get_rbio(ssl)) || openssl.SSL_has_pending(ssl);
    return c;
}

/* Notes what a call of OpenSSL has failed of; what the BIO found comes first. */
static void note_failure(channel *c)
{
    int why = openssl.SSL_get_error(c->ssl, 0);
    if (c->outcome != DONE)
        ;
    else if (why == SSL_WANT_READ)
        c->outcome = AGAIN;
    else if (why == SSL_END)
        c->outcome = ENDED;
    else {
        unsigned long code = openssl.ERR_peek_last_error();
        c->outcome = FAILED;
        c->error = (int)(code & 0x7FFFFFFF);
    }
    openssl.ERR_clear_error();
}

/* Has a buffer for the call, with what the last one has left.  OpenSSL's own read ahead is for small frames alone: of
 * what it has read ahead it moves all to the front of its buffer for each record, to have it aligned. */
static int open_buffer(channel *c)
{
    uint8_t *kept = c->in, *buffer = borrowed();
    if (!buffer) {
        c->outcome = SYSTEM;
        c->error = ENOMEM;
        return 0;
    }
    int64_t left = c->in_end - c->in_begin;
    if (left)
        memcpy(buffer, kept + c->in_begin, left);
    free(kept);
    c->in = buffer;
    c->in_begin = 0;
    c->in_end = left;
    openssl.SSL_set_read_ahead(c->ssl, 0);
    return 1;
}

/* Gives the buffer back, and keeps what is left in it: little. */
static void close_buffer(channel *c)
{
    uint8_t *buffer = c->in, *kept = NULL;
    int64_t left = c->in_end - c->in_begin;
    if (left) {
        if (!(kept = malloc(left))) { /* what came is lost, and with it the connection */
            c->outcome = SYSTEM;
            c->error = ENOMEM;
            left = 0;
        } else
            memcpy(kept, buffer + c->in_begin, left);
    }
    give_back(buffer);
    c->in = kept;
    c->in_begin = 0;
    c->in_end = left;
    openssl.SSL_set_read_ahead(c->ssl, !kept);
}

/* Decrypts into `room` what has come, as much as there is.  `waits`: for the first byte, as the descriptor does.
 * Returns how many bytes; `outcome` says why not more. */
int64_t lifl_records_receive(channel *c, int fd, uint8_t *room, int64_t nbytes, int waits)
{
    int64_t got = 0;
    c->fd = fd;
    c->outcome = DONE;
    c->memory = openssl.SSL_get_rbio(c->ssl);
    int buffered = nbytes >= LARGE_BYTES || c->in;
    if (buffered && !open_buffer(c))
        return 0;
    openssl.BIO_up_ref(c->memory);
    openssl.BIO_up_ref(c->receiver);
    openssl.SSL_set0_rbio(c->ssl, c->receiver);
    openssl.ERR_clear_error();
    while (got < nbytes && c->outcome == DONE) {
        size_t step = 0;
        c->flags = waits && !got ? 0 : MSG_DONTWAIT;
        c->wanted = nbytes - got;
        if (openssl.SSL_read_ex(c->ssl, room + got, nbytes - got, &step)) {
            got += step;
            c->had_data = 1;
            c->fed = 0;
            c->overhead = c->overhead > (int64_t)(OVERHEAD * step) ? c->overhead - OVERHEAD * step : 0;
        } else
            note_failure(c);
    }
    openssl.SSL_set0_rbio(c->ssl, c->memory);
    if (buffered)
        close_buffer(c);
    c->more = c->outcome != AGAIN && (c->in_begin < c->in_end || openssl.SSL_has_pending(c->ssl) || openssl.BIO_ctrl_pending(c->memory));
    return got;
}

/* Notes that what was added behind `begin` is a record of so many bytes in plain. */
static void note_record(channel *c, int64_t begin, int64_t plain)
{
    c->records[c->records_count++] = (record){c->end - begin, plain};
}

/* Makes records of the first bytes of `data`; before them goes what OpenSSL has to say by itself. */
static void seal(channel *c, const uint8_t *data, int64_t nbytes)
{
    int64_t begin = c->begin = c->end = 0, own = openssl.BIO_ctrl_pending(c->memory);
    int64_t plain = nbytes < WRITE_PLAIN ? nbytes : WRITE_PLAIN;
    if (!has_room(c, own + plain + (plain / RECORD_PLAIN + 2) * SEALED_MORE)) {
        c->outcome = SYSTEM;
        c->error = ENOMEM;
        return;
    }
    if (own) {
        c->end += openssl.BIO_read(c->memory, c->out, (int)own);
        note_record(c, 0, 0);
    }
    openssl.BIO_up_ref(c->memory);
    openssl.BIO_up_ref(c->sender);
    openssl.SSL_set0_wbio(c->ssl, c->sender);
    openssl.ERR_clear_error();
    while (nbytes && c->records_count < WRITE_PLAIN / RECORD_PLAIN && c->outcome == DONE) {
        size_t step = 0;
        begin = c->end;
        if (openssl.SSL_write_ex(c->ssl, data, nbytes < RECORD_PLAIN ? nbytes : RECORD_PLAIN, &step)) {
            note_record(c, begin, step);
            data += step;
            nbytes -= step;
        } else
            note_failure(c);
    }
    openssl.SSL_set0_wbio(c->ssl, c->memory);
}

/* Gives the kernel what it takes, once; returns whether it took something. */
static int push(channel *c)
{
    ssize_t left = send(c->fd, c->out + c->begin, c->end - c->begin, c->flags | MSG_NOSIGNAL);
    if (left < 0) {
        c->error = errno;
        c->outcome = errno == EINTR ? INTERRUPTED : errno == EAGAIN || errno == EWOULDBLOCK ? AGAIN : SYSTEM;
        return 0;
    }
    c->begin += left;
    int gone = 0;
    while (gone < c->records_count && c->records[gone].sealed <= left) {
        left -= c->records[gone].sealed;
        c->credit += c->records[gone++].plain;
    }
    c->records_count -= gone;
    memmove(c->records, c->records + gone, c->records_count * sizeof(record));
    if (c->records_count)
        c->records[0].sealed -= left;
    return 1;
}

/* Keeps no large buffer that is empty. */
static void drop_buffer(channel *c)
{
    if (c->begin == c->end && c->room > LARGE_BYTES) {
        free(c->out);
        c->out = NULL;
        c->begin = c->end = c->room = 0;
    }
}

/* Sends what the kernel takes (`waits`: all, as the descriptor does); returns how many bytes of `data` have left, all of
 * their record.  What is left must be offered again. */
int64_t lifl_records_send(channel *c, int fd, const uint8_t *data, int64_t nbytes, int waits)
{
    int64_t sent = 0;
    c->fd = fd;
    c->flags = waits ? 0 : MSG_DONTWAIT;
    c->outcome = DONE;
    c->memory = openssl.SSL_get_wbio(c->ssl);
    while (sent < nbytes && c->outcome == DONE) {
        if (c->begin == c->end && !c->credit)
            seal(c, data + sent, nbytes - sent);
        if (c->begin < c->end)
            push(c);
        int64_t step = c->credit < nbytes - sent ? c->credit : nbytes - sent;
        c->credit -= step;
        sent += step;
    }
    drop_buffer(c);
    return sent;
}

/* Sends what has not left yet, and what OpenSSL has to say by itself. */
void lifl_records_flush(channel *c, int fd, int waits)
{
    c->fd = fd;
    c->flags = waits ? 0 : MSG_DONTWAIT;
    c->outcome = DONE;
    c->memory = openssl.SSL_get_wbio(c->ssl);
    while (c->outcome == DONE && (c->begin < c->end || openssl.BIO_ctrl_pending(c->memory))) {
        if (c->begin == c->end)
            seal(c, NULL, 0);
        if (c->begin < c->end)
            push(c);
    }
    drop_buffer(c);
}

int lifl_records_outcome(const channel *c)
{
    return c->outcome;
}

int lifl_records_error(const channel *c)
{
    return c->error;
}

int lifl_records_more(const channel *c)
{
    return c->more;
}
