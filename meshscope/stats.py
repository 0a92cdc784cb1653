"""The agent's own counters: one flat dict of name -> number, every name declared here with a sentence.

Kernel counters arrive under their names of kprobes/meshscope.h in lower case (``bytes_moved``) with prefix
``kernel_``. Adding to an undeclared counter raises KeyError, so a typo cannot lose a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

COUNTERS: Final[dict[str, str]] = {}  # name -> what it counts; extended below by area

# sinks: what becomes of exchanges. exchanges given to spans = exported + sampled out + dropped + failed
COUNTERS.update(
    {
        "golden_exchanges": "Exchanges handed to the metric table, each end once.",
        "golden_unknown": "Exchanges kept out of every request, duration and error metric because their outcome is not known.",
        "series_overflowed": "Exchanges counted in an overflow row because the metric table was full.",
        "series_expired": "Rows of the metric table forgotten because nothing was counted in them for long.",
        "spans_offered": "Exchanges handed to the span exporter.",
        "spans_sampled_out": "Exchanges not exported as spans because their trace is not sampled, or the budget forbids it.",
        "spans_shed": "Of those sampled out, the ones whose trace was sampled: withheld to keep the budget.",
        "spans_dropped": "Sampled exchanges dropped because the queue of the span exporter was full or the agent stopped.",
        "spans_exported": "Spans that the receiver accepted.",
        "spans_failed": "Spans that could not be delivered, or that the receiver rejected.",
        "otlp_rejected": "Spans and metric points that a receiver rejected although it took the rest of the request.",
        "otlp_requests": "Export requests sent, retries included.",
        "otlp_retries": "Export requests sent again after a failure that may pass.",
        "metrics_exports": "Times the metric table was delivered to the OTLP receiver.",
        "metrics_exports_failed": "Times the metric table could not be delivered; its totals are kept.",
        "metrics_exports_skipped": "Times the metric table was not sent because the export before was still under way.",
        "scrapes": "Times the metrics were fetched as Prometheus text.",
        "scrapes_refused": "Connections to the metrics address turned away because too many were open.",
        "console_dropped": "Lines not printed because whoever reads standard output took nothing for too long.",
        "console_failed": "Exchanges not printed because standard output is gone.",
        "record_failed": "Exchanges not written to the record file because writing failed.",
    },
)


# flow: records in, exchanges out
COUNTERS.update(
    {
        "records": "Records taken from the ring.",
        "records_of_unknown_kind": "Records whose kind this version does not know.",
        "batches_torn": "Batches that did not end with a whole record.",
        "records_held": "Records of an answer that overtook its request and waited for it.",
        "held_overflows": "Times the bytes held back for such an answer passed the bound and it went on without its request.",
        "waiting_overflows": "Things that waited for record time to pass and were done early, because too many waited.",
        "records_ignored": "Data records of connections that are left alone, already on their way when the kernel was told.",
        "records_after_close": "Data records of a socket that came when its connection was already closed and forgotten.",
        "holes": "Places where bytes were lost between two records of a direction.",
        "bytes_lost": "Bytes lost in them.",
        "bytes_overlapped": "Bytes that came twice or out of order, from threads racing on one socket; what came first was kept.",
        "bytes_not_copied": "Bytes a record stands for and does not hold: sendfile, long transfers, faults.",
        "bytes_unrecognised": "Bytes of connections in which no protocol was recognised, or not yet.",
        "connections_recognised": "Connections and TLS sessions that got a parser.",
        "connections_unrecognised": "Connections left alone because no protocol claimed their bytes.",
        "connections_given_up": "Connections left alone because their parser refused the bytes too often.",
        "connections_evicted": "Connections forgotten because too many were followed; the longest silent go first.",
        "connections_without_open": "Connections first met in a data record: their addresses are unknown.",
        "connections_in_two_shards": "Connections moved by two selected roots: the order of their records is not trusted.",
        "protocol_errors": "Times a parser refused the bytes it was given.",
        "parser_bugs": "Times a parser failed with anything else; its connection is left alone.",
        "handovers": "Connections that stopped speaking their protocol (Upgrade, CONNECT) and are left alone.",
        "verdicts_skip": "Times the kernel was told not to copy the rest of a body.",
        "open_requests_evicted": "Requests given up because too many of one connection waited for an answer.",
        "exchanges": "Exchanges, each end counting one.",
        "messages": "Requests and responses: the sum of the next four and of those still open.",
        "messages_paired": "Those that made an exchange with an answer.",
        "messages_aborted": "Those of exchanges that provably ended without a whole answer.",
        "messages_orphaned": "Responses whose request was not seen.",
        "messages_unknown": "Those of exchanges whose outcome cannot be known.",
        "unknown_bytes_lost": "Exchanges of unknown outcome because bytes of their connection were lost.",
        "unknown_late_join": "The same, because the connection was joined in its middle.",
        "unknown_evicted": "The same, because a bound was reached.",
        "unknown_input_ended": "The same, because the agent stopped or the recording ended.",
        "unknown_parser_error": "The same, because the parser gave up.",
        "unknown_upgraded": "The same, because the connection changed its protocol.",
        "tls_connections": "Sockets that carry TLS.",
        "tls_handshakes_dropped": "Server randoms forgotten because too many waited for their session.",
        "tls_sessions_bound": "Times the socket of a TLS session was found.",
        "tls_sessions_unbound": "TLS sessions whose socket was not found: their peer is unknown.",
        "tls_rebinds": "TLS sessions that moved bytes on another socket than the one they were bound to.",
        "tls_connections_opaque": "Connections that carry TLS and showed no plaintext.",
    },
)


# trace, route, budget
COUNTERS.update(
    {
        "traceparent_invalid": "Requests with a traceparent that is not valid (W3C Trace Context): it was ignored.",
        "remote_sampled_capped": "Exchanges whose caller asked for a span beyond its service's rate cap: our own decision held.",
        "routes_collapsed": "Exchanges whose route is {other}: their service has more than are told apart, or it is too long.",
        "budget_given_up": "Times something was given up to keep the agent's budget.",
        "budget_taken_back": "Times something given up was taken back.",
    },
)

# kernel: what the programs count, prefix kernel_ (kprobes/meshscope.h); copied from the maps once a second and at the end
COUNTERS.update(
    {
        "kernel_bytes_moved": "Bytes moved by selected processes on TCP sockets and in TLS calls.",
        "kernel_bytes_copied": "Of these, copied into the ring.",
        "kernel_bytes_skipped": "Of these, not copied because the agent asked so: bodies, connections left alone.",
        "kernel_bytes_unreadable": "Of these, in no plain buffer: sendfile, io_uring, compat tasks, truncated reads, faults.",
        "kernel_bytes_cut": "Of these, behind the first 64 KiB of one transfer.",
        "kernel_bytes_ciphertext": "Of these, ciphertext of TLS connections: counted, seen as plaintext in the TLS call.",
        "kernel_bytes_lost": "Of these, lost because the ring was full.",
        "kernel_records_attempted": "Records for which room in the ring was asked.",
        "kernel_records_reserved": "Of these, those that got it.",
        "kernel_records_reserve_failed": "Of these, those that found the ring full.",
        "kernel_read_faults": "Times a buffer could not be read.",
        "kernel_storage_failed": "Sockets for which no storage could be made: their role and position are unknown.",
        "kernel_map_full": "TLS sessions, calls or processes that could not be stored.",
        "kernel_calls_stale": "TLS calls whose return was not seen.",
        "kernel_peeks": "Reads that left the bytes where they were; not counted as moved.",
        "kernel_traps": "TLS probe hits, entries and returns.",
        "kernel_unpositioned_transfers": "Transfers on kTLS or MPTCP sockets: counted, their bytes have no position.",
        "kernel_rebinds": "TLS sessions whose socket turned out to be another than the one bound.",
    },
)

# capture: who is watched and which libraries are probed
COUNTERS.update(
    {
        "tls_refused_gone": "TLS libraries not probed because the mapped file cannot be reached: deleted or replaced on disk.",
        "tls_refused_shape": "TLS libraries not probed because the file is none that can be: no ELF, no symbols.",
        "tls_refused_changed": "TLS libraries not probed because their code is not what it was when it was examined.",
        "tls_refused_unsafe": "TLS libraries not probed because a return probe would kill the process on this kernel.",
        "tls_refused_kernel": "TLS libraries not probed because the kernel refused a probe.",
        "tls_attached": "Times a TLS library was probed, for one process or as a file.",
        "tls_detached": "Times such probes were taken away again.",
        "tls_moved": "Times a file's probes were given up for probes per process because a stranger mapped it.",
        "targets_rounds": "Rounds of the search for processes to watch.",
        "targets_failed": "Rounds of that search that ended in an error and were tried again.",
    },
)

# agent: the loop and its end
COUNTERS.update(
    {
        "batches": "Batches taken from the source.",
        "equations_unbalanced": "Equations between these counters that did not hold when the agent ended.",
    },
)

# Both sides are sums, equal when the agent has ended in order: what went in is accounted for.
EQUATIONS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        ("kernel_bytes_moved",),
        (
            "kernel_bytes_copied",
            "kernel_bytes_skipped",
            "kernel_bytes_unreadable",
            "kernel_bytes_cut",
            "kernel_bytes_ciphertext",
            "kernel_bytes_lost",
        ),
    ),
    (("kernel_records_attempted",), ("kernel_records_reserved", "kernel_records_reserve_failed")),
    (("kernel_records_reserved",), ("records",)),
    (("messages",), ("messages_paired", "messages_aborted", "messages_orphaned", "messages_unknown")),
    (("exchanges",), ("golden_exchanges",)),
    (("spans_offered",), ("spans_exported", "spans_sampled_out", "spans_dropped", "spans_failed")),
)


def imbalances(n: Mapping[str, int], *, kernel: bool) -> list[str]:
    """The equations that do not hold, each as one line with its figures. kernel: its counters are known."""
    return [
        f"{' + '.join(left)} = {sum(n[name] for name in left)} but {' + '.join(right)} = {sum(n[name] for name in right)}"
        for left, right in EQUATIONS
        if sum(n[name] for name in left) != sum(n[name] for name in right) and (kernel or not left[0].startswith("kernel_"))
    ]


class Stats:
    """Counters of one agent. Increment with ``stats.n[name] += 1``; read with ``snapshot``."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n: dict[str, int] = dict.fromkeys(COUNTERS, 0)

    def snapshot(self) -> dict[str, int]:
        """A copy, safe to hand to another thread."""
        return dict(self.n)
