/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What differs between processors: the registers of a system call, the
 * numbers of those that move socket data, and what tells a 32-bit task.
 */
#ifndef MS_COMPAT_H
#define MS_COMPAT_H

#include "kernel.h"

/* How a system call names its buffer. */
enum ms_shape { MS_NO_BUFFER, MS_BUFFER, MS_IOVEC, MS_MSGHDR };

#if defined(__TARGET_ARCH_x86)

struct pt_regs {
	unsigned long r8;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long cx;
	unsigned long ax;
	unsigned long orig_ax;
	unsigned long sp;
} __attribute__((preserve_access_index));

#define MS_SYSCALL(at) ((long)(at)->orig_ax)
#define MS_IN_SYSCALL(at) ((long)(at)->ax == -38) /* -ENOSYS from entry until the call's result takes its place */
#define MS_SYSCALL_ARG2(at) ((at)->si)
#define MS_SYSCALL_ARG3(at) ((at)->dx)
#define MS_SYSCALL_SP(at) ((at)->sp)

/* A function at its entry, and the same one when a return probe sees it return. */
#define MS_ARG1(at) ((at)->di)
#define MS_ARG2(at) ((at)->si)
#define MS_ARG4(at) ((at)->cx)
#define MS_ARG5(at) ((at)->r8)
#define MS_SP(at) ((at)->sp)
#define MS_RESULT(at) ((at)->ax)
#define MS_RETURN_SP(at) ((at)->sp - 8) /* the return address has been popped */

#define MS_NR_read 0
#define MS_NR_write 1
#define MS_NR_readv 19
#define MS_NR_writev 20
#define MS_NR_sendto 44
#define MS_NR_recvfrom 45
#define MS_NR_sendmsg 46
#define MS_NR_recvmsg 47
#define MS_NR_preadv2 327
#define MS_NR_pwritev2 328

#define TS_COMPAT 0x0002 /* arch/x86/include/asm/thread_info.h: a 32-bit system call is under way */

static __always_inline bool ms_compat_task(struct task_struct *task)
{
	return task->thread_info.status & TS_COMPAT;
}

#elif defined(__TARGET_ARCH_arm64)

struct pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 orig_x0;
	__s32 syscallno;
} __attribute__((preserve_access_index));

#define MS_SYSCALL(at) ((long)(at)->syscallno)
#define MS_IN_SYSCALL(at) ((at)->regs[0] == (at)->orig_x0) /* until the call's result takes its place */
#define MS_SYSCALL_ARG2(at) ((at)->regs[1])
#define MS_SYSCALL_ARG3(at) ((at)->regs[2])
#define MS_SYSCALL_SP(at) ((at)->sp)

#define MS_ARG1(at) ((at)->regs[0])
#define MS_ARG2(at) ((at)->regs[1])
#define MS_ARG4(at) ((at)->regs[3])
#define MS_ARG5(at) ((at)->regs[4])
#define MS_SP(at) ((at)->sp)
#define MS_RESULT(at) ((at)->regs[0])
#define MS_RETURN_SP(at) ((at)->sp)

#define MS_NR_read 63
#define MS_NR_write 64
#define MS_NR_readv 65
#define MS_NR_writev 66
#define MS_NR_sendto 206
#define MS_NR_recvfrom 207
#define MS_NR_sendmsg 211
#define MS_NR_recvmsg 212
#define MS_NR_preadv2 286
#define MS_NR_pwritev2 287

#define TIF_32BIT_BIT 22 /* arch/arm64/include/asm/thread_info.h */

static __always_inline bool ms_compat_task(struct task_struct *task)
{
	return task->thread_info.flags & (1ul << TIF_32BIT_BIT);
}

#else
#error "build with -D__TARGET_ARCH_x86 or -D__TARGET_ARCH_arm64"
#endif

static __always_inline enum ms_shape ms_syscall_shape(long nr)
{
	switch (nr) {
	case MS_NR_read:
	case MS_NR_write:
	case MS_NR_sendto:
	case MS_NR_recvfrom:
		return MS_BUFFER;
	case MS_NR_readv:
	case MS_NR_writev:
	case MS_NR_preadv2:
	case MS_NR_pwritev2:
		return MS_IOVEC;
	case MS_NR_sendmsg:
	case MS_NR_recvmsg:
		return MS_MSGHDR;
	default: /* sendfile, splice, io_uring, sendmmsg, recvmmsg, what comes */
		return MS_NO_BUFFER;
	}
}

/* Keeps the compiler from proving a bound away that the verifier must see. */
#define ms_opaque(value) asm volatile("" : "+r"(value))

#endif
