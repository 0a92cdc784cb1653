/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Records into the ring, and the only place that copies user memory.
 * Records are built in ring memory: no per-CPU scratch, because uprobe
 * programs are preemptible.
 */
#ifndef MS_CHUNK_H
#define MS_CHUNK_H

#include "filter.h"

#define MS_DATA_MAX (MS_RECORD_MAX - sizeof(struct ms_chunk))
#define MS_GATHER_SEGMENTS 8
#define MS_GATHER_SMALL 512
#define MS_GATHER_LARGE 1984
#define MS_SEGMENTS_MAX 64 /* turns of ms_transfer's loop: records plus empty or skipped iovecs */

static __always_inline void *ms_ring_of(__u32 shard)
{
	__u32 index = config.ring_count > 1 ? shard % config.ring_count : 0;

	return bpf_map_lookup_elem(&rings, &index);
}

/*
 * User space looks every few milliseconds; it is woken by the record (`size`
 * bytes, reserved) with which a quarter of the ring waits, and by that one
 * only: a wake-up is an interrupt, dearer than all else here.
 */
static __always_inline __u64 ms_wake(void *ring, __u64 size)
{
	__u64 waiting = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);
	__u64 quarter = config.ring_bytes / 4;

	return waiting >= quarter && waiting - size - BPF_RINGBUF_HDR_SZ < quarter ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

static __always_inline void ms_lost(const struct ms_chunk *head)
{
	ms_count(MS_RECORDS_RESERVE_FAILED, 1);
	if (head->kind == MS_DATA)
		ms_count(MS_BYTES_LOST, head->len);
}

/* A record of fixed size that begins with a struct ms_chunk. */
#define ms_send(record)                                                           \
	({                                                                        \
		void *ring = ms_ring_of((record)->head.shard);                    \
		int sent = -1;                                                    \
		typeof(record) at;                                                \
		ms_count(MS_RECORDS_ATTEMPTED, 1);                                \
		at = ring ? bpf_ringbuf_reserve(ring, sizeof(*(record)), 0) : 0;  \
		if (at) {                                                         \
			*at = *(record);                                          \
			bpf_ringbuf_submit(at, ms_wake(ring, sizeof(*(record)))); \
			ms_count(MS_RECORDS_RESERVED, 1);                         \
			sent = 0;                                                 \
		} else {                                                          \
			ms_lost(&(record)->head);                                 \
		}                                                                 \
		sent;                                                             \
	})

/* An MS_OPEN with the beginning of its object behind it. */
static __always_inline int ms_send_with_object(const struct ms_conn *record)
{
	void *ring = ms_ring_of(record->head.shard);
	struct ms_conn *at;

	ms_count(MS_RECORDS_ATTEMPTED, 1);
	at = ring ? bpf_ringbuf_reserve(ring, sizeof(*at) + MS_OBJECT_BYTES, 0) : 0;
	if (!at) {
		ms_lost(&record->head);
		return -1;
	}
	*at = *record;
	at->head.copied = MS_OBJECT_BYTES;
	if (bpf_probe_read_user(at + 1, MS_OBJECT_BYTES, (const void *)record->object)) {
		at->head.copied = 0;
		ms_count(MS_READ_FAULTS, 1);
	}
	bpf_ringbuf_submit(at, ms_wake(ring, sizeof(*at) + MS_OBJECT_BYTES));
	ms_count(MS_RECORDS_RESERVED, 1);
	return 0;
}

/* bpf_ringbuf_reserve wants a constant; five sizes waste little. */
#define MS_EMIT(total)                                                         \
	do {                                                                   \
		struct ms_chunk *at = bpf_ringbuf_reserve(ring, total, 0);     \
		if (!at) {                                                     \
			ms_lost(head);                                         \
			return -1;                                             \
		}                                                              \
		*at = *head;                                                   \
		at->copied = n;                                                \
		ms_opaque(n);                                                  \
		if (n > (total) - sizeof(*at))                                 \
			n = (total) - sizeof(*at);                             \
		if (n && bpf_probe_read_user(at + 1, n, (const void *)from)) { \
			at->copied = 0;                                        \
			at->flags |= MS_FAULT;                                 \
			ms_count(MS_READ_FAULTS, 1);                           \
			n = 0;                                                 \
		}                                                              \
		bpf_ringbuf_submit(at, ms_wake(ring, total));                  \
	} while (0)

/*
 * One data record: head->len bytes, the first `n` of them copied from user
 * address `from` (n <= MS_DATA_MAX, n <= head->len). Global, so that the
 * verifier looks at it once and not at every call.
 */
__noinline int ms_emit(const struct ms_chunk *head, __u64 from, __u64 n)
{
	void *ring;

	if (!head)
		return -1;
	ring = ms_ring_of(head->shard);
	ms_count(MS_RECORDS_ATTEMPTED, 1);
	if (!ring) {
		ms_lost(head);
		return -1;
	}
	if (n <= 256 - sizeof(*head))
		MS_EMIT(256);
	else if (n <= 512 - sizeof(*head))
		MS_EMIT(512);
	else if (n <= 1024 - sizeof(*head))
		MS_EMIT(1024);
	else if (n <= 2048 - sizeof(*head))
		MS_EMIT(2048);
	else
		MS_EMIT(MS_RECORD_MAX);
	ms_count(MS_RECORDS_RESERVED, 1);
	if (n)
		ms_count(MS_BYTES_COPIED, n);
	if (n < head->len)
		ms_count(head->flags & MS_CUT ? MS_BYTES_CUT : MS_BYTES_UNREADABLE, head->len - n);
	return 0;
}

/* A transfer on its way into records. */
struct ms_transfer {
	struct ms_chunk head;
	__u64 iov;     /* user address of the next struct iovec, 0: none */
	__u64 iovs;    /* how many are left there */
	__u64 from;    /* user address of the next byte of this segment */
	__u64 segment; /* bytes left of this segment */
	__u64 drop;    /* bytes to pass over first: user space does not want them */
	__u64 left;    /* bytes of the transfer still to be told, without those */
	__u32 records;
	__u32 fault;
};

static long ms_transfer_step(__u32 index, struct ms_transfer **of)
{
	struct ms_transfer *t = *of;
	struct iovec iov;
	__u64 n;

	if (!t->left || t->records >= MS_TRANSFER_RECORDS)
		return 1;
	if (!t->segment) {
		if (!t->iovs)
			return 1;
		if (bpf_probe_read_user(&iov, sizeof(iov), (const void *)t->iov)) {
			ms_count(MS_READ_FAULTS, 1);
			t->fault = 1;
			return 1;
		}
		t->iov += sizeof(iov);
		t->iovs--;
		t->from = (__u64)iov.iov_base;
		t->segment = iov.iov_len;
		if (t->segment > t->left + t->drop)
			t->segment = t->left + t->drop;
		return 0;
	}
	if (t->drop) {
		n = t->drop < t->segment ? t->drop : t->segment;
		t->from += n;
		t->segment -= n;
		t->drop -= n;
		return 0;
	}
	n = t->segment < MS_DATA_MAX ? t->segment : MS_DATA_MAX;
	t->head.len = n;
	ms_emit(&t->head, t->from, n);
	t->head.pos += n;
	t->from += n;
	t->segment -= n;
	t->left -= n;
	t->records++;
	return 0;
}

/* The rest of a transfer, as a length. */
static __always_inline void ms_rest(struct ms_transfer *t, __u8 flag)
{
	t->head.len = t->left;
	t->head.flags |= flag;
	ms_emit(&t->head, 0, 0);
}

/*
 * Several small segments (a head and its body, as servers write them) make one
 * record: user space pays per record. The record has room for twice `most`
 * bytes, because the verifier bounds offset and length apart.
 */
#define MS_GATHER(most)                                                                                       \
	do {                                                                                                  \
		struct ms_chunk *at = bpf_ringbuf_reserve(ring, sizeof(*at) + 2 * (most), 0);                 \
		if (!at) {                                                                                    \
			ms_lost(&t->head);                                                                    \
			return -1;                                                                            \
		}                                                                                             \
		*at = t->head;                                                                                \
		for (int i = 0; i < MS_GATHER_SEGMENTS && left; i++) {                                        \
			if (bpf_probe_read_user(&iov, sizeof(iov), (const void *)(t->iov + i * sizeof(iov)))) \
				break;                                                                        \
			n = iov.iov_len < left ? iov.iov_len : left;                                          \
			ms_opaque(n);                                                                         \
			ms_opaque(offset);                                                                    \
			if (n > (most) || offset >= (most))                                                   \
				break;                                                                        \
			if (n && bpf_probe_read_user((char *)(at + 1) + offset, n, iov.iov_base))             \
				break;                                                                        \
			offset += n;                                                                          \
			left -= n;                                                                            \
		}                                                                                             \
		at->copied = offset;                                                                          \
		if (left)                                                                                     \
			at->flags |= MS_FAULT;                                                                \
		bpf_ringbuf_submit(at, ms_wake(ring, sizeof(*at) + 2 * (most)));                              \
	} while (0)

__noinline int ms_gather(struct ms_transfer *t)
{
	__u64 left, offset = 0, n;
	struct iovec iov;
	void *ring;

	if (!t)
		return -1;
	t->head.len = left = t->left;
	ring = ms_ring_of(t->head.shard);
	ms_count(MS_RECORDS_ATTEMPTED, 1);
	if (!ring) {
		ms_lost(&t->head);
		return -1;
	}
	if (left <= MS_GATHER_SMALL)
		MS_GATHER(MS_GATHER_SMALL);
	else
		MS_GATHER(MS_GATHER_LARGE);
	ms_count(MS_RECORDS_RESERVED, 1);
	ms_count(MS_BYTES_COPIED, offset);
	if (left) {
		ms_count(MS_READ_FAULTS, 1);
		ms_count(MS_BYTES_UNREADABLE, left);
	}
	return 0;
}

/* Sends a transfer, in one record where it can be one. Global for the verifier's sake, as ms_emit. */
__noinline int ms_send_transfer(struct ms_transfer *t)
{
	struct iovec iov;

	if (!t)
		return -1;
	if (t->iovs == 1 && !bpf_probe_read_user(&iov, sizeof(iov), (const void *)t->iov)) {
		t->from = (__u64)iov.iov_base;
		t->segment = t->left + t->drop;
		t->iovs = 0;
	}
	if (t->segment && t->left <= MS_DATA_MAX) {
		t->head.len = t->left;
		return ms_emit(&t->head, t->from + t->drop, t->left);
	}
	if (t->iovs && t->iovs <= MS_GATHER_SEGMENTS && t->left <= MS_GATHER_LARGE && !t->drop)
		return ms_gather(t);
	bpf_loop(MS_SEGMENTS_MAX, ms_transfer_step, &t, 0);
	if (t->left)
		ms_rest(t, t->fault ? MS_FAULT : MS_CUT);
	return 0;
}

#endif
