"""meshscope: exchanges of running services, seen from the kernel.

The way of the data, and where to read on::

    kprobes/            C in the kernel: copies bytes into a ring, knows no protocol
    capture/            a Source: batches of records, from the kernel (bpf) or a recording (record);
                        targets finds processes and TLS libraries, placement where a probe costs least
    flow                records -> connections -> parsers -> exchanges; counts what is missing
    parsers/            one file per protocol: bytes in, messages out; knows nothing of meshscope
    redact              in flow's last step: what may leave
    enrich, trace, route    stages: list of exchanges in, same list out, filled in
    sinks/              console, record, metric table (golden), OTLP, Prometheus
    agent               the only place where capture and sinks meet; one loop, one thread
    budget, doctor, config, cli    around it

Threads stand only at the edges (targets, exporters, the Prometheus server) and never make the loop wait.
Loss is data: every byte that was not seen is counted in stats, and an exchange that misses some says so in its flags.
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
