/*
 * Copyright: kvm.liveupdate contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The whole user space of a lab guest. At least once a second it tells that it is alive, that it was never restarted (boot id,
 * tick number) and that its memory is what it was (checksum of a blob of random bytes).
 *
 * Words on the kernel's command line give it more to do: port=NAME, a virtio port on which it tells instead of the console, and
 * twice as often (an emulated UART costs the host an exit or more for each byte, a port one for each line); disk=DEVICE and
 * disk2=DEVICE, ext4 file systems to which it appends records, each synced before its number goes into the next tick (0:0:0:1 is a
 * SCSI disk by its place); address=IP, at which it sends back on port 7 whatever comes, by TCP or UDP; relay=IP, to whose port 22 it
 * passes on what comes at its own by TCP; heart=IP, to which it sends its ticks as datagrams; agent=NAME, a virtio port on which it is
 * a guest agent; tpm=yes, to extend a PCR of its TPM once, and count in the TPM; nvram=yes, to count in a variable of its UEFI
 * firmware; wide=MIB, so much more memory whose checksum it takes, one word in each 64 KiB; load=MIB, so much memory that it writes all the time, and reads
 * back before it writes it again. With more than one processor, a process on each of them counts. On the power button it ends the
 * records, unmounts and powers off.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/ioctl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Small, because the processor that reads it over and over is emulated twice.
#define BLOB_WORDS (4u * 1024 * 1024 / 8)
#define PASS_NS 4000000000L
#define TICKS_A_PASS 8
/* On a UART, where each byte costs. */
#define TICKS_A_PASS_SLOWLY 4
#define RECORD_SIZE 80
#define RECORD_PAUSE_US 400000
/* Under load. */
#define SHORT_RECORD_PAUSE_US 50000
#define LOAD_PAGE 4096
#define LOAD_PAUSE_US 20000
#define LOAD_PAGES_A_PAUSE 128
#define ECHO_PORT 7
#define RELAY_PORT 22
#define HEART_PORT 4077
#define DISKS 2
#define PROCESSORS 8
#define WIDE_STEP (64 * 1024)
#define TURN_PAUSE_US 1000000
#define TPM_PAUSE_US 4000000
#define TPM_PATIENCE 60
#define EFI_PAUSE_US 4000000
#define EFI_ROUNDS_A_WRITE 8
#define EFIVARS "/sys/firmware/efi/efivars"
#define EFI_VARIABLE EFIVARS "/LabCount-6b766d6c-7570-4461-a65f-6c6162000002"
/* linux/fs.h cannot be included together with sys/mount.h. */
#define SET_FILE_FLAGS _IOW('f', 2, long)

static uint64_t blob[BLOB_WORDS];
static uint64_t *wide;
static size_t wide_steps;
static char boot[64];
static int heart = -1, heart_is_lossy;
static volatile sig_atomic_t rung;
/* What the processes have done for certain; the first one tells of it. Zero until there is something to tell. */
static volatile struct {
	unsigned long records[DISKS];
	unsigned long turns[PROCESSORS];
	uint64_t pcr, tpm_count;
	uint64_t efi_count;
} *done;

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
static uint64_t add_slice(uint64_t sum, size_t first, size_t words)
{
	for (size_t i = first; i < first + words; i++) {
		sum = (sum ^ blob[i]) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 29;
	}
	return sum;
}

/* One word in each step, in memory that nothing else is in: so there is some of it all over the guest's RAM. */
static void fill_wide(uint64_t seed, size_t mib)
{
	wide_steps = mib * 1024 * 1024 / WIDE_STEP;
	wide = mmap(NULL, mib * 1024 * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (wide == MAP_FAILED)
		wide_steps = 0;
	/* Each page, so that all of it is memory that is used. */
	for (size_t at = 0; at < wide_steps * WIDE_STEP; at += 4096)
		wide[at / 8] = seed ^ at;
}

static uint64_t add_wide(uint64_t sum, size_t first, size_t steps)
{
	for (size_t i = first; i < first + steps; i++) {
		sum = (sum ^ wide[i * WIDE_STEP / 8]) * 0x9e3779b97f4a7c15ULL;
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

/* One write: a line is either there or torn by the jump itself. Where the host does not take it now it waits; a datagram may be lost. */
static void say(const char *line, size_t length)
{
	while (write(heart, line, length) < 0 && errno == EAGAIN && !heart_is_lossy)
		usleep(1000);
}

/* The virtio port of this name; -1 where there is none. The kernel tells of its ports some time after it has started us. */
static int open_port(const char *wanted, int flags)
{
	char path[512], name[64];

	for (int tries = 0; tries < 3000; tries++) {
		struct dirent *entry;
		DIR *ports = opendir("/sys/class/virtio-ports");

		while (ports && (entry = readdir(ports))) {
			snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
			int fd = entry->d_name[0] == '.' ? -1 : open(path, O_RDONLY);
			ssize_t got = fd < 0 ? -1 : read(fd, name, sizeof(name) - 1);

			if (fd >= 0)
				close(fd);
			name[got > 0 ? got : 0] = '\0';
			name[strcspn(name, "\n")] = '\0';
			if (strcmp(name, wanted) == 0) {
				snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
				closedir(ports);
				return open(path, flags);
			}
		}
		if (ports)
			closedir(ports);
		usleep(10000);
	}
	return -1;
}

/* The end of a process that cannot do its work: its last words go where the ticks go. */
static void give_up(const char *what)
{
	char line[128];
	int length = snprintf(line, sizeof(line), "FAILED %s: %s\n", what, strerror(errno));

	say(line, length);
	_exit(1);
}

/* FNV-1a. */
static uint64_t sum_of(const char *text, size_t length)
{
	uint64_t sum = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i < length; i++)
		sum = (sum ^ (unsigned char)text[i]) * 0x100000001b3ULL;
	return sum;
}

/* The path of a disk. The kernel finds SCSI disks some time after it has started us, and names them in the order in which it does. */
static void find_disk(const char *wanted, char *path, size_t size)
{
	char folder[64];

	snprintf(folder, sizeof(folder), "/sys/bus/scsi/devices/%s/block", wanted);
	for (int tries = 0; tries < 3000; tries++) {
		struct dirent *entry;
		DIR *found = wanted[0] == '/' ? NULL : opendir(folder);

		snprintf(path, size, "%s", wanted[0] == '/' ? wanted : "");
		while (found && (entry = readdir(found)))
			if (entry->d_name[0] != '.')
				snprintf(path, size, "/dev/%s", entry->d_name);
		if (found)
			closedir(found);
		if (path[0] && access(path, F_OK) == 0)
			return;
		usleep(10000);
	}
	give_up("disk");
}

static const char *const FOLDERS[DISKS] = {"/disk", "/disk2"};

/* Append records for ever: number, boot id, checksum of both. What an earlier boot wrote stays in front of them. */
static void write_records(const char *device, int place, useconds_t pause_us)
{
	char record[RECORD_SIZE + 1], path[300];
	struct stat seen;

	mkdir(FOLDERS[place], 0755);
	find_disk(device, path, sizeof(path));
	if (mount(path, FOLDERS[place], "ext4", 0, NULL) < 0)
		give_up("mount");
	snprintf(path, sizeof(path), "%s/records", FOLDERS[place]);
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0 || fstat(fd, &seen) < 0)
		give_up("open");
	unsigned long number = seen.st_size / RECORD_SIZE;
	/* Half a record is what a power cut leaves: it was never acknowledged. */
	if (ftruncate(fd, number * RECORD_SIZE) < 0)
		give_up("truncate");
	for (;;) {
		number++;
		int length = snprintf(record, sizeof(record), "%025lu %36s ", number, boot);
		snprintf(record + length, sizeof(record) - length, "%016llx\n", (unsigned long long)sum_of(record, length));
		if (write(fd, record, RECORD_SIZE) != RECORD_SIZE)
			give_up("write");
		if (fsync(fd) < 0)
			give_up("fsync");
		done->records[place] = number;
		usleep(pause_us);
	}
}

/* What a page of the load has in its first and last word in this round. */
static uint64_t load_word(uint64_t round, size_t page)
{
	return round * 0x9e3779b97f4a7c15ULL + page;
}

/* Write so many MiB for ever. Before each write a page must have what the round before has written: nothing older, and nothing else. */
static void load_memory(size_t mib)
{
	size_t pages = mib * (1024 * 1024 / LOAD_PAGE), words = LOAD_PAGE / sizeof(uint64_t);
	uint64_t *region = mmap(NULL, pages * LOAD_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (region == MAP_FAILED)
		give_up("load");
	for (uint64_t round = 1;; round++) {
		for (size_t page = 0; page < pages; page++) {
			uint64_t *first = region + page * words, *last = first + words - 1;
			uint64_t expected = round == 1 ? 0 : load_word(round - 1, page);

			if (*first != expected || *last != expected) {
				errno = EIO;
				give_up("load: a page has other content");
			}
			*first = *last = load_word(round, page);
			if (page % LOAD_PAGES_A_PAUSE == 0)
				usleep(LOAD_PAUSE_US);
		}
	}
}

/* Send back each datagram. */
static void echo_datagrams(const struct sockaddr_in *any)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in peer;
	char data[1024];

	if (bind(fd, (const struct sockaddr *)any, sizeof(*any)) < 0)
		give_up("bind");
	for (;;) {
		socklen_t size = sizeof(peer);
		ssize_t got = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&peer, &size);

		/* One that cannot be sent is lost, as datagrams may be. */
		if (got >= 0 && sendto(fd, data, got, MSG_DONTWAIT, (struct sockaddr *)&peer, size) < 0)
			continue;
	}
}

/* Copy what comes until it ends, then say so to the other side. A blocking socket takes all of a write. */
static void copy(int from, int to)
{
	char data[4096];
	ssize_t got;

	while ((got = read(from, data, sizeof(data))) > 0)
		if (write(to, data, got) != got)
			break;
	shutdown(to, SHUT_WR);
}

/* Pass a connection on to another machine, one process for each direction. */
static void pass_on(int connection, const char *to)
{
	struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(RELAY_PORT)};
	int onward = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, to, &peer.sin_addr);
	if (connect(onward, (struct sockaddr *)&peer, sizeof(peer)) < 0)
		return;
	if (fork() == 0)
		copy(connection, onward);
	else
		copy(onward, connection);
}

/* Give the only network card an address. */
static void set_address(const char *address)
{
	struct ifreq card = {.ifr_name = "eth0"};
	struct sockaddr_in *in = (struct sockaddr_in *)&card.ifr_addr;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	if (ioctl(fd, SIOCSIFADDR, &card) < 0)
		give_up("address");
	inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
	if (ioctl(fd, SIOCSIFNETMASK, &card) < 0)
		give_up("netmask");
	card.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &card) < 0)
		give_up("link");
	close(fd);
}

/* A socket whose datagrams go to this address; -1 where there is none. */
static int network_heart(const char *address)
{
	struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(HEART_PORT)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);

	inet_pton(AF_INET, address, &peer.sin_addr);
	return connect(fd, (const struct sockaddr *)&peer, sizeof(peer)) < 0 ? -1 : fd;
}

/* Take TCP connections for ever, each in a process of its own: send back what comes, or pass it on to another machine. */
static void serve(uint16_t port, const char *to)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, 8) < 0)
		give_up("listen");
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection >= 0 && fork() == 0) {
			if (to)
				pass_on(connection, to);
			else
				copy(connection, connection);
			_exit(0);
		}
		close(connection);
	}
}

/* Serve at the address of the only network card. */
static void serve_network(const char *relay)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(ECHO_PORT)};

	if (fork() == 0)
		echo_datagrams(&any);
	if (relay && fork() == 0)
		serve(RELAY_PORT, relay);
	serve(ECHO_PORT, NULL);
}

/* The number that follows a key in a line of JSON; 0 when the key is not in it. */
static long long number_at(const char *line, const char *key)
{
	const char *at = strstr(line, key);

	return at ? strtoll(at + strlen(key) + strspn(at + strlen(key), " :"), NULL, 10) : 0;
}

/* In nanoseconds; without a time by the hardware clock, which is what ran on while the guest stood still. */
static int set_clock(long long to)
{
	char text[32] = "";
	int fd = to ? -1 : open("/sys/class/rtc/rtc0/since_epoch", O_RDONLY | O_CLOEXEC);

	if (!to && read(fd, text, sizeof(text) - 1) > 0)
		to = strtoll(text, NULL, 10) * 1000000000LL;
	if (fd >= 0)
		close(fd);
	struct timespec now = {.tv_sec = to / 1000000000, .tv_nsec = to % 1000000000};
	return to > 0 ? clock_settime(CLOCK_REALTIME, &now) : -1;
}

/* What the agent answers to a line. Its file systems are frozen only by its own account. */
static int answer(const char *line, char *text, size_t size)
{
	static int frozen;
	const char *empty = "{\"return\": {}}\n";
	struct timespec now;

	if (strstr(line, "\"guest-sync-delimited\""))
		return snprintf(text, size, "\xff{\"return\": %lld}\n", number_at(line, "\"id\""));
	if (strstr(line, "\"guest-sync\""))
		return snprintf(text, size, "{\"return\": %lld}\n", number_at(line, "\"id\""));
	if (strstr(line, "\"guest-ping\""))
		return snprintf(text, size, "%s", empty);
	if (strstr(line, "\"guest-info\""))
		return snprintf(text, size, "{\"return\": {\"version\": \"lab\", \"supported_commands\": []}}\n");
	if (strstr(line, "\"guest-fsfreeze-status\""))
		return snprintf(text, size, "{\"return\": \"%s\"}\n", frozen ? "frozen" : "thawed");
	if (strstr(line, "\"guest-fsfreeze-thaw\"") || (!frozen && strstr(line, "\"guest-fsfreeze-freeze\""))) {
		frozen = strstr(line, "thaw") == NULL;
		return snprintf(text, size, "{\"return\": 1}\n");
	}
	if (!frozen && strstr(line, "\"guest-get-time\"")) {
		clock_gettime(CLOCK_REALTIME, &now);
		return snprintf(text, size, "{\"return\": %lld}\n", now.tv_sec * 1000000000LL + now.tv_nsec);
	}
	if (!frozen && strstr(line, "\"guest-set-time\"") && set_clock(number_at(line, "\"time\"")) == 0)
		return snprintf(text, size, "%s", empty);
	return snprintf(text, size, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"unknown, failed, or frozen\"}}\n");
}

/* What libvirt asks QEMU's guest agent for; the real one, with all that it links to, is too big for this initramfs. */
static void serve_agent(const char *port)
{
	char *line = NULL, text[256];
	size_t room = 0;
	int fd = open_port(port, O_RDWR);
	FILE *lines = fd < 0 ? NULL : fdopen(fd, "r");
	if (!lines)
		give_up("agent");
	for (;;) {
		if (getline(&line, &room, lines) > 0) {
			if (write(fd, text, answer(line, text, sizeof(text))) < 0)
				usleep(100000);
		} else {
			/* Nobody on the other side. */
			clearerr(lines);
			usleep(100000);
		}
	}
}

static void on_alarm(int number)
{
	(void)number;
	rung = 1;
}

/* Count on one processor for ever. Its own timer has to interrupt it for each turn: this clock goes on only in the processor's ticks. */
static void take_turns(int processor)
{
	struct sigaction action = {.sa_handler = on_alarm};
	cpu_set_t only;

	CPU_ZERO(&only);
	CPU_SET(processor, &only);
	sigaction(SIGVTALRM, &action, NULL);
	if (sched_setaffinity(0, sizeof(only), &only) < 0)
		give_up("affinity");
	for (;;) {
		struct itimerval soon = {.it_value = {.tv_usec = 1000}};

		rung = 0;
		setitimer(ITIMER_VIRTUAL, &soon, NULL);
		while (!rung)
			;
		done->turns[processor]++;
		usleep(TURN_PAUSE_US);
	}
}

/* A command of the TPM library, part 3, and its answer. 0, or the response code; -1 where there is no answer. */
static long tpm(int fd, const unsigned char *command, size_t size, unsigned char *answer, size_t room)
{
	if (write(fd, command, size) != (ssize_t)size)
		return -1;
	return read(fd, answer, room) < 10 ? -1 : (long)answer[6] << 24 | answer[7] << 16 | answer[8] << 8 | answer[9];
}

static uint64_t big_endian(const unsigned char *bytes)
{
	uint64_t value = 0;

	for (int i = 0; i < 8; i++)
		value = value << 8 | bytes[i];
	return value;
}

#define PASSWORD_SESSION 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0
#define NV_INDEX 0x01, 0x50, 0x00, 0x77
#define SHA256 0, 0x0b
#define PCR 16

/*
 * Count in the TPM for ever. The PCR, extended once by random bytes, is in what a TPM has only while it runs; the counter is in what it
 * keeps. A TPM that is not the same any more, or is as it was some time ago, tells another value of one of them.
 */
static void count_in_tpm(void)
{
	/* TPM2_NV_DefineSpace: a counter of 8 bytes, read and written with an empty password. */
	static const unsigned char define[] = {0x80, 2, 0, 0, 0, 45, 0, 0, 1, 0x2a, 0x40, 0, 0, 1, PASSWORD_SESSION, 0, 0,
					       0, 14, NV_INDEX, SHA256, 0x02, 0x04, 0, 0x14, 0, 0, 0, 8};
	/* TPM2_NV_Increment, TPM2_NV_Read, TPM2_PCR_Read. */
	static const unsigned char increment[] = {0x80, 2, 0, 0, 0, 31, 0, 0, 1, 0x34, NV_INDEX, NV_INDEX, PASSWORD_SESSION};
	static const unsigned char read_counter[] = {0x80, 2, 0, 0, 0, 35, 0, 0, 1, 0x4e, NV_INDEX, NV_INDEX, PASSWORD_SESSION, 0, 8, 0, 0};
	static const unsigned char read_pcr[] = {0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, SHA256, 3, 0, 0, 1 << (PCR - 16)};
	/* TPM2_PCR_Extend: the digest comes last. */
	unsigned char extend[33 + 32] = {0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, PCR, PASSWORD_SESSION, 0, 0, 0, 1, SHA256};
	unsigned char counter[256], pcr[256];
	int extended = 0, failures = 0;
	long code = -1;

	while (getrandom(extend + 33, 32, 0) != 32)
		;
	while (failures < TPM_PATIENCE) {
		int fd = open("/dev/tpm0", O_RDWR | O_CLOEXEC);

		code = fd < 0 ? -1 : extended ? 0 : tpm(fd, extend, sizeof(extend), pcr, sizeof(pcr));
		extended |= code == 0;
		if (code == 0 && (code = tpm(fd, increment, sizeof(increment), counter, sizeof(counter))) > 0) {
			/* The first time ever. */
			code = tpm(fd, define, sizeof(define), counter, sizeof(counter));
			if (code == 0)
				code = tpm(fd, increment, sizeof(increment), counter, sizeof(counter));
		}
		if (code == 0)
			code = tpm(fd, read_counter, sizeof(read_counter), counter, sizeof(counter));
		if (code == 0)
			code = tpm(fd, read_pcr, sizeof(read_pcr), pcr, sizeof(pcr));
		if (code == 0) {
			/* After the header: the size of the parameters and of the data; the update counter, the selection, the digests. */
			done->pcr = big_endian(pcr + 10 + 4 + 10 + 4 + 2);
			done->tpm_count = big_endian(counter + 10 + 4 + 2);
		}
		failures = code == 0 ? 0 : failures + 1;
		if (fd >= 0)
			close(fd);
		/* No answer in time is no fault of a TPM whose host is busy. */
		usleep(code == 0 ? TPM_PAUSE_US : 1000000);
	}
	char what[32];
	snprintf(what, sizeof(what), "tpm, code 0x%lx", code);
	give_up(what);
}

/* Count in a variable of the firmware for ever. Only each eighth round writes it, because the firmware appends to its flash. */
static void count_in_firmware(void)
{
	if (mount("efivarfs", EFIVARS, "efivarfs", 0, NULL) < 0)
		give_up("efivarfs");
	for (unsigned round = 0;; round++) {
		/* Its attributes (kept, for the firmware and for us), then the count. */
		unsigned char variable[4 + 8] = {7};
		uint64_t count = 0;
		long none = 0;
		int fd = open(EFI_VARIABLE, O_RDONLY | O_CLOEXEC);

		if (fd >= 0 && read(fd, variable, sizeof(variable)) == sizeof(variable))
			memcpy(&count, variable + 4, sizeof(count));
		done->efi_count = count;
		/* Linux lets nobody write a variable that it does not know before it is told to. */
		if (fd >= 0) {
			ioctl(fd, SET_FILE_FLAGS, &none);
			close(fd);
		}
		if (round % EFI_ROUNDS_A_WRITE == 0) {
			count++;
			memcpy(variable + 4, &count, sizeof(count));
			fd = open(EFI_VARIABLE, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
			if (fd < 0 || write(fd, variable, sizeof(variable)) != sizeof(variable))
				give_up("variable");
			close(fd);
		}
		usleep(EFI_PAUSE_US);
	}
}

/* A socket on which the kernel tells of ACPI events. Generic netlink says which group they go to, in lists within lists. */
static int acpi_events(void)
{
	struct {
		struct nlmsghdr header;
		struct genlmsghdr command;
		struct nlattr attribute;
		char name[12];
	} request = {
		.header = {.nlmsg_len = sizeof(request), .nlmsg_type = GENL_ID_CTRL, .nlmsg_flags = NLM_F_REQUEST},
		.command = {.cmd = CTRL_CMD_GETFAMILY, .version = 1},
		.attribute = {.nla_len = NLA_HDRLEN + sizeof("acpi_event"), .nla_type = CTRL_ATTR_FAMILY_NAME},
		.name = "acpi_event",
	};
	char answer[2048];
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC), inside = 0;
	int length = send(fd, &request, sizeof(request), 0) < 0 ? -1 : (int)recv(fd, answer, sizeof(answer), 0);

	for (int at = NLMSG_HDRLEN + GENL_HDRLEN; at + NLA_HDRLEN < length;) {
		struct nlattr *attribute = (struct nlattr *)(answer + at);

		if (inside && attribute->nla_type == CTRL_ATTR_MCAST_GRP_ID) {
			setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, attribute + 1, sizeof(int));
			return fd;
		}
		inside |= attribute->nla_type == CTRL_ATTR_MCAST_GROUPS;
		/* From the list of groups on, first into the list and into its only group. */
		at += attribute->nla_type == CTRL_ATTR_MCAST_GROUPS ? 2 * NLA_HDRLEN : NLA_ALIGN(attribute->nla_len);
	}
	return fd;
}

/* Whether one of the events that came is the power button. */
static int power_button(int fd)
{
	char event[1024];
	ssize_t got;
	int pressed = 0;

	while ((got = recv(fd, event, sizeof(event), MSG_DONTWAIT)) > 0)
		pressed |= memmem(event, got, "button/power", 12) != NULL;
	return pressed;
}

static void power_off(const pid_t *writers)
{
	for (int place = 0; place < DISKS; place++)
		if (writers[place] > 0) {
			kill(writers[place], SIGKILL);
			waitpid(writers[place], NULL, 0);
			if (umount(FOLDERS[place]) < 0)
				give_up("unmount");
		}
	sync();
	reboot(RB_POWER_OFF);
}

/* The part of a tick that says what the processes have done, as far as there is something. */
static int tell_more(char *text, size_t room, const char *const *disks, int processors)
{
	int length = 0;

	for (int place = 0; place < DISKS; place++)
		if (disks[place])
			length += snprintf(text + length, room - length, " disk%s=%lu", place ? "2" : "", done->records[place]);
	for (int processor = 0; processors > 1 && processor < processors; processor++)
		length += snprintf(text + length, room - length, "%s%lu", processor ? "," : " cpus=", done->turns[processor]);
	if (done->tpm_count)
		length += snprintf(text + length, room - length, " tpm=%016llx,%llu", (unsigned long long)done->pcr,
				   (unsigned long long)done->tpm_count);
	if (done->efi_count)
		length += snprintf(text + length, room - length, " efi=%llu", (unsigned long long)done->efi_count);
	return length;
}

int main(void)
{
	uint64_t seed = 0, sum = 0, running = 0;
	unsigned long tick = 0, pass = 0;
	const char *address = getenv("address"), *port = getenv("port"), *agent = getenv("agent"), *heart_to = getenv("heart");
	const char *relay = getenv("relay"), *load = getenv("load"), *disks[DISKS] = {getenv("disk"), getenv("disk2")}, *much = getenv("wide");
	pid_t writers[DISKS] = {0};

	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mkdir("/sys", 0755);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	/* Non-blocking: a write would spin until the host has taken the line. */
	heart = port ? open_port(port, O_WRONLY | O_NONBLOCK) : -1;
	if (address)
		set_address(address);
	if (address && heart_to) {
		heart = network_heart(heart_to);
		heart_is_lossy = heart >= 0;
	}
	long ticks_a_pass = heart < 0 ? TICKS_A_PASS_SLOWLY : TICKS_A_PASS, tick_ns = PASS_NS / ticks_a_pass;
	size_t slice = BLOB_WORDS / ticks_a_pass;
	if (heart < 0)
		heart = open("/dev/console", O_WRONLY | O_NOCTTY);

	read_boot_id(boot, sizeof(boot));
	while (seed == 0)
		if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
			seed = 0;
	done = mmap(NULL, sizeof(*done), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int place = 0; place < DISKS; place++)
		if (disks[place] && (writers[place] = fork()) == 0)
			write_records(disks[place], place, load ? SHORT_RECORD_PAUSE_US : RECORD_PAUSE_US);
	if (address && fork() == 0)
		serve_network(relay);
	if (agent && fork() == 0)
		serve_agent(agent);
	if (load && fork() == 0)
		load_memory(strtoul(load, NULL, 10));
	if (getenv("tpm") && fork() == 0)
		count_in_tpm();
	if (getenv("nvram") && fork() == 0)
		count_in_firmware();
	int processors = sysconf(_SC_NPROCESSORS_ONLN);
	if (processors > PROCESSORS)
		processors = PROCESSORS;
	for (int processor = 0; processors > 1 && processor < processors; processor++)
		if (fork() == 0)
			take_turns(processor);
	int events = acpi_events();
	fill(seed);
	if (much)
		fill_wide(seed, strtoul(much, NULL, 10));
	size_t wide_slice = wide_steps / ticks_a_pass;

	for (;;) {
		char line[512], more[256] = "";
		int64_t started = monotonic_ns();
		struct timespec real;
		int length;

		if (power_button(events))
			power_off(writers);
		tick++;
		tell_more(more, sizeof(more), disks, processors);
		clock_gettime(CLOCK_REALTIME, &real);
		length = snprintf(line, sizeof(line),
				  "TICK n=%lu mono=%lld.%06lld real=%lld.%06ld boot=%s sum=%016llx pass=%lu%s\n", tick,
				  (long long)(started / 1000000000), (long long)(started / 1000 % 1000000),
				  (long long)real.tv_sec, real.tv_nsec / 1000, boot, (unsigned long long)sum, pass, more);
		say(line, length);

		running = add_slice(running, (tick - 1) % ticks_a_pass * slice, slice);
		running = add_wide(running, (tick - 1) % ticks_a_pass * wide_slice, wide_slice);
		if (tick % ticks_a_pass == 0) {
			sum = running;
			running = 0;
			pass++;
		}

		/* Relative, and never more than one tick: a clock that leaps makes no burst and no long silence. */
		int64_t rest = tick_ns - (monotonic_ns() - started);
		struct timespec pause = {.tv_nsec = rest < 1000000 ? 1000000 : rest > tick_ns ? tick_ns : rest};
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
}
