// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Bytes that selected processes move over TCP, and the life of those
 * connections. One body (`moved`) behind two rungs: the socket tracepoints
 * (kernel commit 40e0b0908142, 6.3) and fexit of tcp_sendmsg and tcp_recvmsg.
 * Both run in the caller's thread after the transfer with the socket at hand,
 * so there is no descriptor table and nothing in flight to remember.
 */
#include "conn.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The TLS call around this event on the same thread, if there is one. */
static __always_inline struct ms_call *enclosing_call(__u64 pid_tgid, __u64 sp)
{
	struct ms_calls *calls_of_thread;
	__u32 top;

	if (!config.tls_probes)
		return 0;
	calls_of_thread = bpf_map_lookup_elem(&calls, &pid_tgid);
	if (!calls_of_thread || !calls_of_thread->depth)
		return 0;
	top = calls_of_thread->depth - 1;
	if (top >= MS_CALL_DEPTH)
		return 0;
	/* A system call made inside it runs deeper in the stack; else its return was missed. */
	return sp < calls_of_thread->call[top].sp ? &calls_of_thread->call[top] : 0;
}

/*
 * The user buffer of the running system call, if it has a plain one and the
 * transfer is that call's: io_uring also moves bytes on the way out of any
 * other call, and the kernel has sockets of its own.
 */
static __always_inline bool find_buffer(struct ms_transfer *t, struct sock *sk, struct task_struct *task, struct pt_regs *regs,
					int flags)
{
	struct socket *socket = sk->sk_socket;
	struct user_msghdr message;
	__u64 arg2, arg3;

	if (task->flags & (PF_KTHREAD | PF_IO_WORKER) || ms_compat_task(task) || flags & MSG_TRUNC)
		return false;
	if (!MS_IN_SYSCALL(regs) || !socket || !socket->file)
		return false;
	arg2 = MS_SYSCALL_ARG2(regs);
	arg3 = MS_SYSCALL_ARG3(regs);
	switch (ms_syscall_shape(MS_SYSCALL(regs))) {
	case MS_BUFFER:
		t->from = arg2;
		t->segment = t->left + t->drop;
		return true;
	case MS_IOVEC:
		t->iov = arg2;
		t->iovs = arg3;
		return true;
	case MS_MSGHDR:
		if (bpf_probe_read_user(&message, sizeof(message), (const void *)arg2)) {
			ms_count(MS_READ_FAULTS, 1);
			return false;
		}
		t->iov = (__u64)message.msg_iov;
		t->iovs = message.msg_iovlen;
		return true;
	default:
		return false;
	}
}

static __always_inline bool fin_came(const struct sock *sk)
{
	return sk->__sk_common.skc_flags & (1ul << SOCK_DONE_BIT);
}

static __always_inline bool all_read(const struct tcp_sock *tcp)
{
	return tcp->copied_seq == tcp->rcv_nxt;
}

/* A read of no bytes met the end of the stream; else it only asked for none. Without a FIN: shut on this side, or reset. */
static __always_inline bool at_end(const struct sock *sk, const struct tcp_sock *tcp)
{
	return sk->sk_shutdown & RCV_SHUTDOWN && (!fin_came(sk) || all_read(tcp));
}

/* Where the transfer began, and where the last one of this direction ended. */
static __always_inline __u64 position(struct sock *sk, const struct tcp_sock *tcp, struct ms_sock *known, __u32 n, __u8 dir)
{
	__u32 end = dir == MS_TX ? tcp->write_seq : tcp->copied_seq;
	__u64 begin;

	/* Reading past a FIN counts the FIN as a byte (RFC 9293 section 3.4). */
	if (dir == MS_RX && fin_came(sk) && all_read(tcp))
		end--;
	begin = known->known & (1 << dir) ? ms_extend(end - n, known->pos[dir]) : end - n;
	known->known |= 1 << dir;
	known->pos[dir] = begin + n;
	return begin;
}

/* What of the transfer user space does not want: true if nothing is left. */
static __always_inline bool unwanted(struct ms_transfer *t, struct ms_sock *known)
{
	struct ms_verdict *verdict = bpf_map_lookup_elem(&verdicts, &t->head.conn);
	__u64 before = known->moved[t->head.dir & 1] - t->left;
	__u64 skip;

	if (verdict && verdict->what == MS_IGNORE) {
		ms_count(known->tls ? MS_BYTES_CIPHERTEXT : MS_BYTES_SKIPPED, t->left);
		return true;
	}
	if (known->tls) {
		if (before >= MS_TLS_HEAD_BYTES) {
			ms_count(MS_BYTES_CIPHERTEXT, t->left);
			return true;
		}
		if (before + t->left > MS_TLS_HEAD_BYTES) {
			ms_count(MS_BYTES_CIPHERTEXT, before + t->left - MS_TLS_HEAD_BYTES);
			t->left = MS_TLS_HEAD_BYTES - before;
		}
	}
	skip = verdict ? verdict->skip[t->head.dir & 1] : 0;
	if (skip <= t->head.pos)
		return false;
	t->drop = skip - t->head.pos < t->left ? skip - t->head.pos : t->left;
	ms_count(MS_BYTES_SKIPPED, t->drop);
	t->head.pos += t->drop;
	t->left -= t->drop;
	return !t->left;
}

/* Whether a transfer is only counted: no bytes of the stream were moved, or their position cannot be known. */
static __always_inline bool beside(struct sock *sk, int flags, __u8 dir)
{
	if (dir == MS_RX && flags & (MSG_PEEK | MSG_ERRQUEUE | MSG_OOB)) {
		if (flags & MSG_PEEK)
			ms_count(MS_PEEKS, 1);
		return true;
	}
	if (sk->sk_protocol == IPPROTO_MPTCP) {
		ms_count(MS_UNPOSITIONED_TRANSFERS, 1);
		return true;
	}
	return false;
}

/* What the head of a record says of a transfer, but its position and shard. */
static __always_inline void describe(struct ms_chunk *head, struct sock *sk, struct tcp_sock *tcp, __u64 pid_tgid, __u8 dir)
{
	head->ts_ns = bpf_ktime_get_ns();
	head->conn = bpf_get_socket_cookie(sk);
	head->tgid = pid_tgid >> 32;
	head->tid = pid_tgid;
	head->kind = MS_DATA;
	head->dir = dir;
	head->src = MS_SOCKET;
	head->srtt_us = tcp->srtt_us >> 3;
	head->retransmits = tcp->total_retrans;
}

static __always_inline int moved(struct sock *sk, int ret, int flags, __u8 dir)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct ms_transfer t = {};
	struct ms_watched *watched;
	struct task_struct *task;
	struct ms_sock *known;
	struct ms_call *call;
	struct tcp_sock *tcp;
	struct pt_regs *regs;

	if (ret < 0)
		return 0;
	watched = ms_watched(pid_tgid >> 32);
	if (!watched || !ms_inet(sk))
		return 0;
	if (beside(sk, flags, dir))
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	known = ms_sock_of(sk);
	if (!known)
		return 0;
	if (!ret) {
		if (dir == MS_RX && known->announced && at_end(sk, tcp))
			ms_shut(sk, known, MS_RX, position(sk, tcp, known, 0, MS_RX));
		return 0;
	}
	if (!known->announced)
		ms_announce(sk, known, pid_tgid >> 32, watched->shard);

	task = bpf_get_current_task_btf();
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	describe(&t.head, sk, tcp, pid_tgid, dir);
	t.head.pos = position(sk, tcp, known, ret, dir);
	t.head.shard = watched->shard;
	t.left = ret;
	known->moved[dir] += ret;
	ms_count(MS_BYTES_MOVED, ret);
	if (tcp->inet_conn.icsk_ulp_ops) {
		t.head.flags |= MS_UNPOSITIONED;
		ms_count(MS_UNPOSITIONED_TRANSFERS, 1);
	}

	call = enclosing_call(pid_tgid, MS_SYSCALL_SP(regs));
	if (call) {
		call->conn = t.head.conn;
		known->tls = 1;
	}
	if (unwanted(&t, known))
		return 0;
	if (find_buffer(&t, sk, task, regs, flags))
		ms_send_transfer(&t);
	else
		ms_rest(&t, MS_UNREADABLE);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(on_sock_send, struct sock *sk, int ret, int flags)
{
	return moved(sk, ret, flags, MS_TX);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(on_sock_recv, struct sock *sk, int ret, int flags)
{
	return moved(sk, ret, flags, MS_RX);
}

/* The other rung. */
SEC("fexit/tcp_sendmsg")
int BPF_PROG(on_tcp_sent, struct sock *sk, void *message, __u64 size, int ret)
{
	return moved(sk, ret, 0, MS_TX);
}

/* Until 6.5 a sendfile comes here, page by page: length and position, no buffer to read. */
SEC("fexit/tcp_sendpage")
int BPF_PROG(on_tcp_page_sent, struct sock *sk, void *page, int offset, __u64 size, int flags, int ret)
{
	return moved(sk, ret, 0, MS_TX);
}

SEC("fexit/tcp_recvmsg")
int BPF_PROG(on_tcp_received, struct sock *sk, void *message, __u64 size, int flags, int *addr_len, int ret)
{
	return moved(sk, ret, flags, MS_RX);
}

/* Role and start of every TCP socket of the node, in its own storage; nothing leaves unless it is announced. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state, const struct sock *sk, int old, int state)
{
	struct ms_conn record = {};
	struct ms_sock fresh = {};
	struct ms_sock *known;
	struct tcp_sock *tcp;

	if (state == TCP_ESTABLISHED) {
		if (old != TCP_SYN_SENT && old != TCP_SYN_RECV)
			return 0;
		known = ms_sock_of(sk);
		if (!known)
			return 0;
		*known = fresh; /* a socket can be connected again */
		known->started_ns = bpf_ktime_get_ns();
		known->role = old == TCP_SYN_SENT ? MS_ROLE_CLIENT : MS_ROLE_SERVER;
		tcp = bpf_skc_to_tcp_sock((void *)sk);
		if (tcp) {
			known->pos[MS_RX] = tcp->copied_seq;
			known->pos[MS_TX] = tcp->write_seq;
			known->known = 1 << MS_RX | 1 << MS_TX;
		}
		return 0;
	}
	if (state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE)
		return 0;
	known = bpf_sk_storage_get(&socks, (void *)sk, 0, 0);
	if (!known || !known->announced)
		return 0;
	if (state != TCP_CLOSE) {
		tcp = bpf_skc_to_tcp_sock((void *)sk);
		if (tcp)
			ms_shut(sk, known, MS_TX,
				known->known & (1 << MS_TX) ? ms_extend(tcp->write_seq, known->pos[MS_TX]) : tcp->write_seq);
		return 0;
	}
	record.head.kind = MS_CLOSE;
	record.err = sk->sk_err;
	record.state = old;
	ms_conn_fill(&record, sk, known);
	ms_send(&record); /* bytes that wait in the socket may still be read after this */
	return 0;
}

static __always_inline void tell(struct task_struct *task, __u32 parent, __u32 event, __u32 shard)
{
	struct ms_process record = {
		.head = {
			.ts_ns = bpf_ktime_get_ns(),
			.tgid = task->tgid,
			.tid = task->pid,
			.kind = MS_PROCESS,
			.shard = shard,
		},
		.parent = parent,
		.event = event,
		.cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id),
	};

	bpf_probe_read_kernel(record.comm, sizeof(record.comm), &task->comm);
	ms_send(&record);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct ms_watched *watched;
	__u32 *shard;

	if (child->tgid == parent->tgid)
		return 0; /* a thread */
	watched = ms_watched(parent->tgid);
	if (watched) {
		ms_watch(child->tgid, watched->shard);
		tell(child, parent->tgid, MS_PROCESS_FORK, watched->shard);
		return 0;
	}
	/* clone3(CLONE_INTO_CGROUP) enters a cgroup without cgroup_attach_task. */
	shard = ms_selected_cgroup(BPF_CORE_READ(child, cgroups, dfl_cgrp));
	if (shard) {
		ms_watch(child->tgid, *shard);
		tell(child, parent->tgid, MS_PROCESS_ENTER, *shard);
	}
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid)
{
	struct ms_watched *watched = ms_watched(task->tgid);

	if (watched || config.follow_exec)
		tell(task, 0, MS_PROCESS_EXEC, watched ? watched->shard : 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct ms_watched *watched;

	if (task->signal->live.counter)
		return 0; /* threads are left */
	watched = bpf_map_lookup_elem(&procs, &tgid);
	if (!watched)
		return 0;
	tell(task, 0, MS_PROCESS_EXIT, watched->shard);
	bpf_map_delete_elem(&procs, &tgid);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_cgroup_attach, struct cgroup *to, const char *path, struct task_struct *task)
{
	__u32 *shard = ms_selected_cgroup(to);
	__u32 tgid = task->tgid;

	if (!shard || bpf_map_lookup_elem(&procs, &tgid))
		return 0;
	ms_watch(tgid, *shard);
	tell(task, 0, MS_PROCESS_ENTER, *shard);
	return 0;
}
