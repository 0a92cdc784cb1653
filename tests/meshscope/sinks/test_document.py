from __future__ import annotations

import json

from meshscope.model import CLIENT, TraceContext
from meshscope.sinks.document import document, line
from tests.meshscope.exchanges import WALL_NS, exchange


def test_a_document_is_what_the_command_line_promises() -> None:
    found = document(exchange(request={"size": 7}, flags=("late_join",)))
    assert found.pop("attributes")["http.route"] == "/items/{id}"
    assert found == {
        "start_ns": WALL_NS + 5_000_000_000,
        "end_ns": WALL_NS + 5_001_500_000,
        "duration_ns": 1_500_000,
        "protocol": "http/1.1",
        "role": "server",
        "tls": False,
        "client": {"address": "127.0.0.1", "port": 45678, "workload": "curl"},
        "server": {"address": "127.0.0.1", "port": 8080, "workload": "shop", "namespace": "market"},
        "process": {"pid": 4321, "tid": 4322, "exe": "/usr/bin/shop"},
        "name": "GET /items/{id}",
        "outcome": "ok",
        "request": {
            "method": "GET",
            "target": "/items/42?color=red",
            "headers": {"host": "shop.local", "user-agent": "curl/7.88.1"},
            "body_bytes": 7,
        },
        "response": {"status": 200, "headers": {"content-type": "text/plain"}, "body_bytes": 512},
        "trace": {"trace_id": "01" * 16, "span_id": "02" * 8, "parent_span_id": "03" * 8},
        "flags": ["late_join"],
    }


def test_what_is_not_known_is_null_and_what_does_not_apply_is_absent() -> None:
    found = document(exchange(CLIENT, status=None, target=None, client=None, server=None, sampled=None, process=None))
    assert found["request"]["target"] is found["response"] is found["process"] is found["trace"] is None
    assert found["client"] == {"address": "127.0.0.1", "port": 45678}


def test_a_root_has_no_parent() -> None:
    found = document(exchange(trace=TraceContext(b"\x01" * 16, b"\x02" * 8, b"", sampled=True)))
    assert found["trace"]["parent_span_id"] is None


def test_a_second_code_and_message_counts_where_there_are_any() -> None:
    x = exchange(request={"messages": 1}, response={"messages": 0})
    x.about.detail_code = "UNAVAILABLE"
    found = document(x)
    assert (found["request"]["messages"], found["response"]["messages"]) == (1, 0)
    assert found["response"]["grpc_status"] == "UNAVAILABLE"


def test_a_line_is_one_line_of_clean_utf8_whatever_came_in() -> None:
    dirt = "é\x00\x1b[2J\r\n\u2028\udcff\x85日"
    x = exchange(target=dirt, route=dirt, method=dirt, request={"headers": {"x-" + dirt: dirt}}, attributes={"k": dirt})
    x.about.name = x.about.code = x.about.detail_code = dirt
    written = line(x)
    assert written.endswith(b"}\n")
    text = written[:-1].decode()
    assert text.isprintable()
    assert json.loads(text)["request"]["target"] == "é\ufffd\ufffd[2J\ufffd\ufffd\ufffd\ufffd\ufffd日"
