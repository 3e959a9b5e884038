/* Sends UDP packets of one octet from one socket: so many, to so many addresses from 198.18.0.0 on, so many a second (0: as fast as
 * it goes). Prints how many seconds it took. Refusals are what it is for. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    long count = atol(argv[1]), addresses = atol(argv[2]);
    double rate = atof(argv[3]);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7)};
    double start = now();
    for (long i = 0; i < count; i++) {
        to.sin_addr.s_addr = htonl(0xc6120000u + (unsigned)(i % addresses));
        sendto(s, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
        if (rate > 0 && i % 64 == 63) {
            double ahead = start + (i + 1) / rate - now();
            if (ahead > 0) {
                struct timespec t = {(time_t)ahead, (long)((ahead - (time_t)ahead) * 1e9)};
                nanosleep(&t, NULL);
            }
        }
    }
    printf("%.6f\n", now() - start);
    return 0;
}
