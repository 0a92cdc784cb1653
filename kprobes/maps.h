/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map. Both objects declare all of them; the loader makes each once and
 * hands it to both.
 */
#ifndef MS_MAPS_H
#define MS_MAPS_H

#include "compat.h"
#include "meshscope.h"

const volatile struct ms_config config SEC(".rodata.ms") = { .magic = MS_MAGIC, .abi_version = MS_ABI_VERSION };

/* What the kernel remembers of a socket; dies with it. */
struct ms_sock {
	__u64 started_ns;
	__u64 pos[2];	/* end of the last transfer, per direction; valid where `known` has the bit */
	__u64 moved[2]; /* bytes since the agent knows it */
	__u32 tgid;	/* the selected process that moved the first bytes */
	__u32 shard;
	__u8 role;
	__u8 announced; /* MS_OPEN has left */
	__u8 tls;	/* a probed TLS call moved its bytes */
	__u8 known;	/* bit per direction */
	__u8 shut;	/* bit per direction: MS_SHUT has left */
	__u8 pad[3];
};

/* A TLS call under way, oldest first. `sp` tells calls apart: the stack grows downwards. */
struct ms_call {
	__u64 ssl;
	__u64 buf;
	__u64 done; /* where the callee stores the length, 0: it returns it */
	__u64 sp;   /* address of the return address */
	__u64 conn; /* cookie of the socket touched inside the call */
	__u32 write;
	__u32 inner; /* another call on the same object and in the same direction is inside: that one tells */
	__u32 by;    /* number of the attachment that noted it */
	__u32 pad;
};

struct ms_calls {
	__u32 depth;
	__u32 pad;
	struct ms_call call[MS_CALL_DEPTH];
};

struct ms_session_key {
	__u64 ssl;
	__u32 tgid;
	__u32 pad;
};

struct ms_session {
	__u64 id;
	__u64 conn; /* cookie, 0 unbound */
	__u64 pos[2];
	__u32 announced;
	__u32 pad;
};

struct ms_counters {
	__u64 n[MS_COUNTERS];
};

/* Inner maps are made by the loader, `ring_bytes` each. */
struct ms_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MS_RINGS_MAX);
	__type(key, __u32);
	__array(values, struct ms_ring);
} rings SEC(".maps");

/* tgid -> selected process. User space adds; fork and cgroup moves add; exit removes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct ms_watched);
} procs SEC(".maps");

/* cgroup v2 id -> shard of the processes that enter it. User space only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ms_sock);
} socks SEC(".maps");

/* cookie or TLS session id -> what user space wants of it. User space adds and removes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct ms_verdict);
} verdicts SEC(".maps");

/* pid_tgid -> TLS calls of a thread. Removed when the last returns; LRU for threads that died inside one. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct ms_calls);
} calls SEC(".maps");

/* SSL object -> its session. Removed by SSL_free; LRU for objects freed unseen. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct ms_session_key);
	__type(value, struct ms_session);
} sessions SEC(".maps");

/* One value, so that one look-up serves all counters of an event. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ms_counters);
} counters SEC(".maps");

/* Atomic although per CPU: uprobe programs can be preempted by others on the same CPU. */
static __always_inline void ms_count(enum ms_counter which, __u64 n)
{
	__u32 zero = 0;
	struct ms_counters *all = bpf_map_lookup_elem(&counters, &zero);

	if (all)
		__sync_fetch_and_add(&all->n[which], n);
}

#endif
