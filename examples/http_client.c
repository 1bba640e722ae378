/* A client of LIFL by HTTP, in C and with nothing but sockets: docs/http.md.
 *
 *     cc -o http_client examples/http_client.c && ./http_client HOST PORT $STATE/http.header JOB CLIENT
 *
 * It takes part until the job is over.  What it "trains" is the model, all float32, plus one, with a weight of 1. */
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *host, *port;
static char credential[256];

/* Ask for something; return the status, and in *body what was answered, *nbytes long and ended by a zero. */
static int ask(const char *method, const char *path, const void *data, size_t length, char **body, size_t *nbytes) {
    struct addrinfo *at, hints = {.ai_socktype = SOCK_STREAM};
    if (getaddrinfo(host, port, &hints, &at)) exit(1);
    int fd = socket(at->ai_family, SOCK_STREAM, 0);
    if (connect(fd, at->ai_addr, at->ai_addrlen)) { perror(host); exit(1); }
    freeaddrinfo(at);
    FILE *out = fdopen(dup(fd), "w"), *in = fdopen(fd, "r");
    fprintf(out, "%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", method, path, host,
            credential, length);
    fwrite(data, 1, length, out);
    fclose(out);
    char line[1024];
    int status = 0;
    *nbytes = 0;
    if (!fgets(line, sizeof line, in) || sscanf(line, "HTTP/1.1 %d", &status) != 1) exit(1);
    while (fgets(line, sizeof line, in) && line[0] != '\r') sscanf(line, "Content-Length: %zu", nbytes);
    *body = calloc(1, *nbytes + 1);
    if (fread(*body, 1, *nbytes, in) != *nbytes) exit(1);
    fclose(in);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "usage: %s HOST PORT HEADER_FILE JOB CLIENT\n", argv[0]); return 2; }
    host = argv[1], port = argv[2];
    FILE *file = fopen(argv[3], "r");
    if (!file || !fgets(credential, sizeof credential, file)) { perror(argv[3]); return 1; }
    fclose(file);
    credential[strcspn(credential, "\n")] = 0;
    char client[600], path[800], *text, *model;
    size_t nbytes;
    snprintf(client, sizeof client, "/v1/jobs/%s/clients/%s", argv[4], argv[5]);
    for (;;) {
        snprintf(path, sizeof path, "%s/selection?wait_s=60", client);
        int status = ask("GET", path, "", 0, &text, &nbytes);
        if (status == 204) continue; /* not yet: ask again */
        if (status != 200) { puts(text); return status != 410; }
        long round = strtol(strstr(text, "\"round\":") + 8, NULL, 10);
        snprintf(path, sizeof path, "%s/rounds/%ld/model", client, round);
        if (ask("GET", path, "", 0, &model, &nbytes) != 200) continue; /* the round is over */
        uint64_t header;
        memcpy(&header, model, 8);
        for (size_t at = 8 + header; at + 4 <= nbytes; at += 4) {
            float number;
            memcpy(&number, model + at, 4);
            number += 1;
            memcpy(model + at, &number, 4);
        }
        snprintf(path, sizeof path, "%s/rounds/%ld/update?weight=1", client, round);
        while (ask("PUT", path, model, nbytes, &text, &(size_t){0}) == 503) sleep(1); /* no room now */
        puts(text);
    }
}
