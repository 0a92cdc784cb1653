/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket is: identity, ends, role, and the life of it. */
#ifndef MS_CONN_H
#define MS_CONN_H

#include "chunk.h"

static __always_inline struct ms_sock *ms_sock_of(const struct sock *sk)
{
	struct ms_sock *known = bpf_sk_storage_get(&socks, (void *)sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!known)
		ms_count(MS_STORAGE_FAILED, 1);
	return known;
}

static __always_inline bool ms_inet(const struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return family == AF_INET || family == AF_INET6;
}

/*
 * The 64-bit position that a 32-bit sequence number stands for, given one
 * that lies within 2 GiB of it.
 */
static __always_inline __u64 ms_extend(__u32 seq, __u64 near)
{
	return near + (__s32)(seq - (__u32)near);
}

static __always_inline void ms_conn_ends(struct ms_conn *record, const struct sock *sk)
{
	record->family = sk->__sk_common.skc_family;
	record->local_port = sk->__sk_common.skc_num;
	record->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	record->netns = sk->__sk_common.skc_net.net->ns.inum;
	if (record->family == AF_INET) {
		*(__u32 *)record->local = sk->__sk_common.skc_rcv_saddr;
		*(__u32 *)record->remote = sk->__sk_common.skc_daddr;
		return;
	}
	bpf_probe_read_kernel(record->local, sizeof(record->local), &sk->__sk_common.skc_v6_rcv_saddr);
	bpf_probe_read_kernel(record->remote, sizeof(record->remote), &sk->__sk_common.skc_v6_daddr);
}

static __always_inline void ms_conn_fill(struct ms_conn *record, const struct sock *sk, const struct ms_sock *known)
{
	record->head.ts_ns = bpf_ktime_get_ns();
	record->head.conn = bpf_get_socket_cookie((void *)sk);
	record->head.tgid = known->tgid;
	record->head.shard = known->shard;
	record->head.src = MS_SOCKET;
	record->started_ns = known->started_ns;
	record->role = known->role;
	record->moved[MS_RX] = known->moved[MS_RX];
	record->moved[MS_TX] = known->moved[MS_TX];
	if (known->known == (1 << MS_RX | 1 << MS_TX)) {
		record->head.pos = known->pos[MS_RX];
		record->object = known->pos[MS_TX];
	}
	ms_conn_ends(record, sk);
}

/* The first byte that a selected process moves makes a connection known to user space. */
static __always_inline void ms_announce(const struct sock *sk, struct ms_sock *known, __u32 tgid, __u32 shard)
{
	struct ms_conn record = {};

	known->tgid = tgid;
	known->shard = shard;
	record.head.kind = MS_OPEN;
	ms_conn_fill(&record, sk, known);
	if (!ms_send(&record))
		known->announced = 1;
}

/* No more bytes in `dir`. `known` is announced. */
static __always_inline void ms_shut(const struct sock *sk, struct ms_sock *known, __u8 dir, __u64 pos)
{
	struct ms_chunk head = {
		.ts_ns = bpf_ktime_get_ns(),
		.conn = bpf_get_socket_cookie((void *)sk),
		.pos = pos,
		.tgid = known->tgid,
		.shard = known->shard,
		.kind = MS_SHUT,
		.dir = dir,
		.src = MS_SOCKET,
	};

	if (known->shut & (1 << dir))
		return;
	known->shut |= 1 << dir;
	ms_emit(&head, 0, 0);
}

#endif
