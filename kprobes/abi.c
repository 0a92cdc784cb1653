/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Names every type of the border, so that BTF carries it; scripts/abi.py reads the object, nobody loads it. */
#include "meshscope.h"

enum ms_abi { MS_MAGIC_NUMBER = MS_MAGIC, MS_ABI_VERSION_NUMBER = MS_ABI_VERSION };

struct ms_chunk chunk;
struct ms_conn conn;
struct ms_process process;
struct ms_watched watched;
struct ms_verdict verdict;
struct ms_config config;
enum ms_abi abi;
enum ms_limit limit;
enum ms_kind kind;
enum ms_dir dir;
enum ms_src src;
enum ms_role role;
enum ms_chunk_flag flag;
enum ms_process_event event;
enum ms_verdict_what what;
enum ms_ssl_call call;
enum ms_counter counter;
