/*
 * Copyright: kvm.liveupdate contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The whole user space of a lab guest. Four times a second it tells the serial console that it is alive, that it was never
 * restarted (boot id, tick number) and that its memory is what it was (checksum of a blob of random bytes).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// Small, because the processor that reads it over and over is emulated twice.
#define BLOB_WORDS (4u * 1024 * 1024 / 8)
#define TICK_NS 250000000L
#define TICKS_A_PASS 16
#define SLICE_WORDS (BLOB_WORDS / TICKS_A_PASS)

static uint64_t blob[BLOB_WORDS];

static int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* xorshift64*: fast, and no two words alike that a deduplicating or zero-skipping copy could make up. */
static void fill(uint64_t state)
{
	for (size_t i = 0; i < BLOB_WORDS; i++) {
		state ^= state >> 12;
		state ^= state << 25;
		state ^= state >> 27;
		blob[i] = state * 0x2545f4914f6cdd1dULL;
	}
}

/* Each step is a bijection of the sum, so that one changed word always changes the result. */
static uint64_t add_slice(uint64_t sum, size_t first)
{
	for (size_t i = first; i < first + SLICE_WORDS; i++) {
		sum = (sum ^ blob[i]) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 29;
	}
	return sum;
}

static void read_boot_id(char *text, size_t size)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

	text[got > 0 ? got : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (fd >= 0)
		close(fd);
}

int main(void)
{
	char boot[64];
	uint64_t seed = 0, sum = 0, running = 0;
	unsigned long tick = 0, pass = 0;

	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	int console = open("/dev/console", O_WRONLY | O_NOCTTY);

	read_boot_id(boot, sizeof(boot));
	while (seed == 0)
		if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
			seed = 0;
	fill(seed);

	for (;;) {
		char line[256];
		int64_t started = monotonic_ns();
		int length;

		tick++;
		length = snprintf(line, sizeof(line), "TICK n=%lu mono=%lld.%06lld boot=%s sum=%016llx pass=%lu\n", tick,
				  (long long)(started / 1000000000), (long long)(started / 1000 % 1000000), boot,
				  (unsigned long long)sum, pass);
		/* One write: a line is either there or torn by the jump itself. */
		if (write(console, line, length) < 0)
			usleep(1000);

		running = add_slice(running, (tick - 1) % TICKS_A_PASS * SLICE_WORDS);
		if (tick % TICKS_A_PASS == 0) {
			sum = running;
			running = 0;
			pass++;
		}

		/* Relative, and never more than one tick: a clock that leaps makes no burst and no long silence. */
		int64_t rest = TICK_NS - (monotonic_ns() - started);
		struct timespec pause = {.tv_nsec = rest < 1000000 ? 1000000 : rest > TICK_NS ? TICK_NS : rest};
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
}
