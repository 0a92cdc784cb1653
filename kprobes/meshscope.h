/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The border between kernel and user space. Everything that crosses the ring
 * or a shared map is declared here and nowhere else; meshscope/capture/abi.py
 * is generated from this file's BTF.
 *
 * Rules: fixed-width types, explicit padding (-Wpadded -Werror), never packed.
 * Every record begins with struct ms_chunk, so one unpack serves all kinds.
 * A change of layout or meaning raises MS_ABI_VERSION.
 */
#ifndef MESHSCOPE_H
#define MESHSCOPE_H

#ifndef __VMLINUX_TYPES__
#include <linux/types.h>
#endif

#define MS_MAGIC 0x4d534350u /* "MSCP", first word of struct ms_config in every object */
#define MS_ABI_VERSION 1

enum ms_limit {
	MS_RECORD_MAX = 4096,	  /* bytes of a record in the ring, head included */
	MS_TRANSFER_RECORDS = 16, /* data records one transfer may become */
	MS_TLS_HEAD_BYTES = 2048, /* of a TLS connection, per direction: enough for a ServerHello */
	MS_CALL_DEPTH = 4,	  /* nested SSL calls followed per thread */
	MS_OBJECT_BYTES = 512,	  /* of an SSL object, from its beginning: its server random is among them (OpenSSL 3: at 320) */
	MS_RINGS_MAX = 16,
};

enum ms_kind {
	MS_DATA = 1,	/* ms_chunk + copied bytes */
	MS_OPEN = 2,	/* ms_conn: first byte moved by a selected process (src says socket or TLS session) */
	MS_SHUT = 3,	/* ms_chunk: no more bytes in `dir`; pos is where it ended */
	MS_CLOSE = 4,	/* ms_conn: the socket is gone; err says how. src TLS: the SSL object was freed */
	MS_PROCESS = 5, /* ms_process: fork, exec or exit */
};

enum ms_dir { MS_RX = 0, MS_TX = 1 };
enum ms_src { MS_SOCKET = 0, MS_TLS = 1 };
enum ms_role { MS_ROLE_UNKNOWN = 0, MS_ROLE_CLIENT = 1, MS_ROLE_SERVER = 2 };

enum ms_chunk_flag {
	MS_UNREADABLE = 1,   /* the transfer's buffer is not a plain user buffer: length and position only */
	MS_FAULT = 2,	     /* the buffer was there and copying it failed */
	MS_CUT = 4,	     /* the last record of a transfer longer than MS_TRANSFER_RECORDS could hold */
	MS_UNPOSITIONED = 8, /* kTLS, MPTCP: pos is not a TCP sequence number of these bytes */
};

enum ms_process_event {
	MS_PROCESS_FORK = 1,
	MS_PROCESS_EXEC = 2,
	MS_PROCESS_EXIT = 3,
	MS_PROCESS_ENTER = 4
}; /* ENTER: moved into a selected cgroup */

enum ms_verdict_what {
	MS_EVERYTHING = 0, /* copy, but for what lies below skip[dir] */
	MS_IGNORE = 1,	   /* count bytes, send nothing but SHUT and CLOSE */
};

/*
 * Attach cookie of a TLS probe: what the probed function is. Without either
 * DONE bit its return value is the length, as SSL_read's; with one it returns
 * 1 for success and stores the length through that pointer argument.
 */
enum ms_ssl_call {
	MS_SSL_WRITE = 1,	 /* plaintext goes out; else it comes in */
	MS_SSL_DONE_4TH = 2,	 /* (ssl, buf, num, size_t *done) */
	MS_SSL_DONE_5TH = 4,	 /* (ssl, buf, num, flags, size_t *done) */
	MS_SSL_ATTACHMENT = 256, /* times a number of its own for every attachment: several may see one call */
};

/*
 * Counters, one per-CPU array, added to atomically. Two equations hold:
 *   MOVED = COPIED + SKIPPED + UNREADABLE + CUT + CIPHERTEXT + LOST        (bytes)
 *   ATTEMPTED = RESERVED + RESERVE_FAILED                                  (records)
 */
enum ms_counter {
	MS_BYTES_MOVED = 0, /* by selected processes on TCP sockets and in TLS calls */
	MS_BYTES_COPIED = 1,
	MS_BYTES_SKIPPED = 2,	 /* by a verdict */
	MS_BYTES_UNREADABLE = 3, /* sendfile, io_uring, compat, truncated, many messages in one call, faults */
	MS_BYTES_CUT = 4,	 /* beyond MS_TRANSFER_RECORDS */
	MS_BYTES_CIPHERTEXT = 5, /* counted on the socket, seen as plaintext in the TLS call */
	MS_BYTES_LOST = 6,	 /* no room in the ring */
	MS_RECORDS_ATTEMPTED = 7,
	MS_RECORDS_RESERVED = 8,
	MS_RECORDS_RESERVE_FAILED = 9,
	MS_READ_FAULTS = 10,	/* bpf_probe_read_user failed */
	MS_STORAGE_FAILED = 11, /* socket storage could not be made: no role, no position */
	MS_MAP_FULL = 12,	/* a session, call, process or (counted by user space) verdict could not be stored */
	MS_CALLS_STALE = 13,	/* TLS calls whose return was never seen */
	MS_PEEKS = 14,
	MS_TRAPS = 15, /* uprobe and uretprobe hits */
	MS_UNPOSITIONED_TRANSFERS = 16,
	MS_REBINDS = 17, /* a TLS session's nested socket differed from the bound one */
	MS_COUNTERS = 18,
};

/* The head of every record, and the whole of MS_SHUT. 64 bytes. */
struct ms_chunk {
	__u64 ts_ns; /* CLOCK_MONOTONIC, at the end of the transfer */
	__u64 conn;  /* socket cookie; for src TLS the bound one, 0 while unbound */
	__u64 tls;   /* TLS session id (top bit set), 0 for src socket */
	__u64 pos;   /* socket: TCP sequence number of the first byte, extended to 64 bit;
			TLS: plaintext bytes that went before in this session and direction */
	__u32 tgid;
	__u32 tid;
	__u32 len;    /* bytes this record stands for */
	__u32 copied; /* bytes that follow; less than len: the rest was not copied */
	__u8 kind;
	__u8 dir;
	__u8 src;
	__u8 flags;
	__u32 srtt_us; /* smoothed round-trip time, microseconds; 0 unknown */
	__u32 retransmits;
	__u32 shard;
};

/*
 * MS_OPEN and MS_CLOSE. 144 bytes. Of a socket head.pos is the position of the
 * next RX byte, at first the one behind the handshake; 0 and 0: not known, as it
 * is older than the agent. MS_OPEN of a TLS session whose socket is not
 * known: `copied` bytes of the SSL object follow, because it may be gone before
 * user space could look at it.
 */
struct ms_conn {
	struct ms_chunk head;
	__u64 started_ns;  /* when the handshake ended; 0: older than the agent */
	__u64 object;	   /* src TLS: the SSL pointer. Socket: as head.pos, of TX */
	__u64 moved[2];	   /* bytes per direction since the agent knows the connection */
	__u32 netns;	   /* inode of the network namespace */
	__u16 family;	   /* AF_INET or AF_INET6 */
	__u16 local_port;  /* host byte order */
	__u16 remote_port; /* host byte order */
	__u16 err;	   /* MS_CLOSE: sk_err (ECONNRESET 104, ETIMEDOUT 110), 0 orderly */
	__u8 role;
	__u8 state; /* MS_CLOSE: the TCP state it closed from */
	__u16 pad;
	__u8 local[16]; /* AF_INET: the first four bytes */
	__u8 remote[16];
};

/* MS_PROCESS. 96 bytes. */
struct ms_process {
	struct ms_chunk head; /* tgid: the process it is about */
	__u32 parent;	      /* fork: tgid of the parent */
	__u32 event;
	__u8 comm[16];
	__u64 cgroup; /* cgroup v2 id */
};

/* Set by the loader before load; the verifier removes what it rules out. One in every object, read-only afterwards. */
struct ms_config {
	__u32 magic;
	__u32 abi_version;
	__u32 agent_tgid; /* never watched */
	__u32 ring_bytes; /* of each ring */
	__u32 ring_count;
	__u32 watch_all;   /* every process but the agent is selected */
	__u32 follow_exec; /* tell every exec on the node */
	__u32 tls_probes;  /* TLS calls are probed: look for the one around a socket event */
};

/* Map values shared with user space. */
struct ms_watched {
	__u32 shard;
	__u32 pad;
	__u64 traps; /* uprobe hits of this process, for the trap budget */
};

struct ms_verdict {
	__u32 what;
	__u32 pad;
	__u64 skip[2]; /* per dir: bytes below this position need not be copied */
};

#endif
