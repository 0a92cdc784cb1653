"""Generated from kprobes/meshscope.h by `make -C kprobes abi`. Do not edit."""

import struct

MAGIC = 1297302352
ABI_VERSION = 1

RECORD_MAX = 4096
TRANSFER_RECORDS = 16
TLS_HEAD_BYTES = 2048
CALL_DEPTH = 4
OBJECT_BYTES = 512
RINGS_MAX = 16

DATA = 1
OPEN = 2
SHUT = 3
CLOSE = 4
PROCESS = 5

RX = 0
TX = 1

SOCKET = 0
TLS = 1

ROLE_UNKNOWN = 0
ROLE_CLIENT = 1
ROLE_SERVER = 2

UNREADABLE = 1
FAULT = 2
CUT = 4
UNPOSITIONED = 8

PROCESS_FORK = 1
PROCESS_EXEC = 2
PROCESS_EXIT = 3
PROCESS_ENTER = 4

EVERYTHING = 0
IGNORE = 1

SSL_WRITE = 1
SSL_DONE_4TH = 2
SSL_DONE_5TH = 4
SSL_ATTACHMENT = 256

CHUNK = struct.Struct("<QQQQIIIIBBBBIII")
CHUNK_FIELDS = ('ts_ns', 'conn', 'tls', 'pos', 'tgid', 'tid', 'len', 'copied', 'kind', 'dir', 'src', 'flags', 'srtt_us', 'retransmits', 'shard')

CONN = struct.Struct("<QQQQIHHHHBBH16s16s")
CONN_FIELDS = ('started_ns', 'object', 'moved_rx', 'moved_tx', 'netns', 'family', 'local_port', 'remote_port', 'err', 'role', 'state', 'pad', 'local', 'remote')

PROCESS_PART = struct.Struct("<II16sQ")
PROCESS_PART_FIELDS = ('parent', 'event', 'comm', 'cgroup')

CONFIG = struct.Struct("<IIIIIIII")
CONFIG_FIELDS = ('magic', 'abi_version', 'agent_tgid', 'ring_bytes', 'ring_count', 'watch_all', 'follow_exec', 'tls_probes')

WATCHED = struct.Struct("<IIQ")
WATCHED_FIELDS = ('shard', 'pad', 'traps')

VERDICT = struct.Struct("<IIQQ")
VERDICT_FIELDS = ('what', 'pad', 'skip_rx', 'skip_tx')

COUNTER_NAMES = ('bytes_moved', 'bytes_copied', 'bytes_skipped', 'bytes_unreadable', 'bytes_cut', 'bytes_ciphertext', 'bytes_lost', 'records_attempted', 'records_reserved', 'records_reserve_failed', 'read_faults', 'storage_failed', 'map_full', 'calls_stale', 'peeks', 'traps', 'unpositioned_transfers', 'rebinds')
