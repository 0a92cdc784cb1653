/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Plaintext at OpenSSL's border. An entry program notes the call, a return
 * program sends what it moved; what lies between on the same thread is inside
 * the call, which is how a socket becomes known as this SSL object's.
 *
 * Where the programs are attached is decided by meshscope/capture/placement.py;
 * the attach cookie (enum ms_ssl_call) says what the probed function is.
 * Uprobe programs are preemptible: nothing here uses per-CPU scratch.
 */
#include "chunk.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MS_SESSION_BIT (1ull << 63) /* tells TLS session ids from socket cookies */

/* Counts the trap. Null: the process is not selected, which a file-wide attachment cannot exclude. */
static __always_inline struct ms_watched *ms_trapped(__u32 tgid)
{
	struct ms_watched *watched = ms_watched(tgid);

	ms_count(MS_TRAPS, 1);
	if (watched)
		__sync_fetch_and_add(&watched->traps, 1);
	return watched;
}

static __always_inline void ms_head(struct ms_chunk *head, const struct ms_session *session, __u64 pid_tgid, __u32 shard)
{
	head->ts_ns = bpf_ktime_get_ns();
	head->conn = session->conn;
	head->tls = session->id;
	head->tgid = pid_tgid >> 32;
	head->tid = pid_tgid;
	head->src = MS_TLS;
	head->shard = shard;
}

/* MS_OPEN or MS_CLOSE of a session. */
static __noinline int ms_send_session(struct ms_session *session, __u64 ssl, __u32 shard, __u32 kind)
{
	struct ms_conn record = {};

	if (!session)
		return -1;
	ms_head(&record.head, session, bpf_get_current_pid_tgid(), shard);
	record.head.kind = kind;
	record.object = ssl;
	record.moved[MS_RX] = session->pos[MS_RX];
	record.moved[MS_TX] = session->pos[MS_TX];
	if (kind == MS_OPEN && !session->conn)
		return ms_send_with_object(&record);
	return ms_send(&record);
}

/*
 * A call of this SSL object went by untold, so its positions hold no more:
 * the object's next bytes begin a session of their own.
 */
static __noinline int ms_forget(__u32 tgid, __u64 ssl, __u32 shard)
{
	struct ms_session_key key = { .ssl = ssl, .tgid = tgid };
	struct ms_session *session = bpf_map_lookup_elem(&sessions, &key);

	if (!session)
		return 0;
	ms_send_session(session, ssl, shard, MS_CLOSE);
	return bpf_map_delete_elem(&sessions, &key);
}

/* Drops calls whose frame is gone: the stack has been unwound past it without a return (longjmp, a dead thread's id). */
static __always_inline void ms_drop_stale(struct ms_calls *all, __u32 tgid, __u32 shard, __u64 sp)
{
	__u32 top;

	for (int i = 0; i < MS_CALL_DEPTH; i++) {
		top = all->depth - 1;
		if (top >= MS_CALL_DEPTH || all->call[top].sp > sp)
			return;
		ms_forget(tgid, all->call[top].ssl, shard);
		all->depth = top;
		ms_count(MS_CALLS_STALE, 1);
	}
}

/* Entries stay when a thread has no call under way: making and deleting one costs more than a trap's other work. */
static __always_inline struct ms_calls *ms_calls_of(__u64 pid_tgid)
{
	struct ms_calls *found = bpf_map_lookup_elem(&calls, &pid_tgid);
	struct ms_calls none = {};

	if (found)
		return found;
	if (bpf_map_update_elem(&calls, &pid_tgid, &none, BPF_NOEXIST))
		ms_count(MS_MAP_FULL, 1);
	return bpf_map_lookup_elem(&calls, &pid_tgid);
}

/*
 * The call is noted already, by another attachment: one takes over from
 * another, or the file lies under two overlay mounts, which look like two files
 * and are one to the kernel. Its return tells once, too, because the first to
 * see it takes it.
 */
static __always_inline bool ms_noted(const struct ms_calls *all, __u64 sp, __u64 ssl, __u32 by)
{
	__u32 top = all->depth - 1;

	return top < MS_CALL_DEPTH && all->call[top].sp == sp && all->call[top].ssl == ssl && all->call[top].by != by;
}

/*
 * int SSL_read(SSL *ssl, void *buf, int num);
 * int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes);
 * int SSL_write_ex2(SSL *s, const void *buf, size_t num, uint64_t flags, size_t *written);
 * and the like, and the functions behind them.
 */
SEC("uprobe")
int ssl_enter(struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid(), sp = MS_SP(ctx), ssl = MS_ARG1(ctx), cookie;
	__u64 fourth = MS_ARG4(ctx), fifth = MS_ARG5(ctx);
	struct ms_watched *watched;
	struct ms_calls *all;
	struct ms_call *call;
	__u32 depth, by;

	ms_opaque(fourth); /* the verifier wants registers read at constant offsets */
	ms_opaque(fifth);
	watched = ms_trapped(pid_tgid >> 32);
	if (!watched)
		return 0;
	all = ms_calls_of(pid_tgid);
	if (!all)
		return 0;
	cookie = bpf_get_attach_cookie(ctx);
	by = cookie / MS_SSL_ATTACHMENT;
	if (ms_noted(all, sp, ssl, by))
		return 0;
	ms_drop_stale(all, pid_tgid >> 32, watched->shard, sp);
	depth = all->depth;
	if (depth >= MS_CALL_DEPTH) {
		ms_count(MS_MAP_FULL, 1);
		ms_forget(pid_tgid >> 32, ssl, watched->shard);
		return 0;
	}
	/* The same object in the same direction, one inside the other: the innermost one tells. */
	if (depth && depth <= MS_CALL_DEPTH) {
		call = &all->call[(depth - 1) & (MS_CALL_DEPTH - 1)];
		if (call->ssl == ssl && call->write == (cookie & MS_SSL_WRITE))
			call->inner = 1;
	}
	call = &all->call[depth & (MS_CALL_DEPTH - 1)];
	call->ssl = ssl;
	call->buf = MS_ARG2(ctx);
	call->done = cookie & MS_SSL_DONE_4TH ? fourth : cookie & MS_SSL_DONE_5TH ? fifth : 0;
	call->sp = sp;
	call->conn = 0;
	call->by = by;
	call->write = cookie & MS_SSL_WRITE;
	call->inner = 0;
	all->depth = depth + 1;
	return 0;
}

/* A process id can be used again, and with it an address of an SSL object: a session older than the process is another's. */
static __always_inline bool ms_older_than_process(const struct ms_session *session)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return (session->id & ~MS_SESSION_BIT) < task->group_leader->start_time;
}

/* The session of an SSL object, announced, and bound to `conn` if that is known. Null: no room. */
static __always_inline struct ms_session *ms_session_of(__u32 tgid, __u32 shard, __u64 ssl, __u64 conn)
{
	struct ms_session_key key = { .ssl = ssl, .tgid = tgid };
	struct ms_session *session = bpf_map_lookup_elem(&sessions, &key);

	if (session && session->conn && conn && session->conn != conn) {
		ms_count(MS_REBINDS, 1);
		ms_send_session(session, ssl, shard, MS_CLOSE);
		bpf_map_delete_elem(&sessions, &key);
		session = 0;
	} else if (session && ms_older_than_process(session)) {
		bpf_map_delete_elem(&sessions, &key);
		session = 0;
	}
	if (!session) {
		struct ms_session fresh = { .id = bpf_ktime_get_ns() | MS_SESSION_BIT };

		if (bpf_map_update_elem(&sessions, &key, &fresh, BPF_NOEXIST))
			ms_count(MS_MAP_FULL, 1);
		session = bpf_map_lookup_elem(&sessions, &key);
		if (!session)
			return 0;
	}
	if (conn)
		session->conn = conn;
	if (!session->announced)
		session->announced = !ms_send_session(session, ssl, shard, MS_OPEN);
	return session;
}

/* Sends `len` bytes of a call, but for those that user space does not want. */
static __always_inline void ms_tell(struct ms_session *session, const struct ms_call *call, __u64 pid_tgid, __u32 shard,
				    __u32 len)
{
	__u32 dir = call->write ? MS_TX : MS_RX;
	__u64 pos = __sync_fetch_and_add(&session->pos[dir], len);
	struct ms_verdict *verdict = bpf_map_lookup_elem(&verdicts, &session->id);
	struct ms_transfer t = { .from = call->buf, .segment = len, .left = len };

	ms_count(MS_BYTES_MOVED, len);
	if (verdict) {
		if (verdict->what == MS_IGNORE)
			t.drop = len;
		else if (verdict->skip[dir] > pos)
			t.drop = verdict->skip[dir] - pos < len ? verdict->skip[dir] - pos : len;
	}
	if (t.drop) {
		ms_count(MS_BYTES_SKIPPED, t.drop);
		t.left -= t.drop;
		if (!t.left)
			return;
	}
	ms_head(&t.head, session, pid_tgid, shard);
	t.head.kind = MS_DATA;
	t.head.dir = dir;
	t.head.pos = pos + t.drop;
	ms_send_transfer(&t);
}

/* Takes the call that returns from the thread's stack. 0: its entry was not seen. */
static __always_inline int ms_take(struct ms_calls *all, __u32 tgid, __u32 shard, __u64 sp, struct ms_call *taken)
{
	__u32 top;

	ms_drop_stale(all, tgid, shard, sp - 1);
	top = all->depth - 1;
	if (top >= MS_CALL_DEPTH || all->call[top].sp != sp)
		return 0;
	*taken = all->call[top];
	all->depth = top;
	return 1;
}

SEC("uretprobe")
int ssl_return(struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid(), len = 0;
	__s32 result = MS_RESULT(ctx);
	struct ms_watched *watched = ms_trapped(pid_tgid >> 32);
	struct ms_session *session;
	struct ms_calls *all;
	struct ms_call call;

	if (!watched)
		return 0;
	all = bpf_map_lookup_elem(&calls, &pid_tgid);
	if (!all || !ms_take(all, pid_tgid >> 32, watched->shard, MS_RETURN_SP(ctx), &call) || call.inner)
		return 0;
	if (result > 0) {
		len = result;
		if (call.done && bpf_probe_read_user(&len, sizeof(len), (const void *)call.done)) {
			ms_count(MS_READ_FAULTS, 1);
			ms_forget(pid_tgid >> 32, call.ssl, watched->shard);
			return 0;
		}
	}
	if (!len && !call.conn)
		return 0;
	session = ms_session_of(pid_tgid >> 32, watched->shard, call.ssl, call.conn);
	if (session && len && len <= 0xffffffff)
		ms_tell(session, &call, pid_tgid, watched->shard, len);
	return 0;
}

/* void SSL_free(SSL *ssl); its address may be another object's next. */
SEC("uprobe")
int ssl_free(struct pt_regs *ctx)
{
	struct ms_session_key key = { .ssl = MS_ARG1(ctx), .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct ms_watched *watched = ms_trapped(key.tgid);
	struct ms_session *session;

	if (!watched)
		return 0;
	session = bpf_map_lookup_elem(&sessions, &key);
	if (!session)
		return 0;
	ms_send_session(session, key.ssl, watched->shard, MS_CLOSE);
	bpf_map_delete_elem(&sessions, &key);
	return 0;
}
