"""nginx as the live suite uses it: plain and TLS ports, one access-log line per request in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tests.live.fleet import Fleet, free_port

CONFIG = """
load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;
user root; daemon off; worker_processes {workers}; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; keepalive_timeout 60s; client_max_body_size 64m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; default_type text/plain;
  log_format line escape=json '{{"method":"$request_method","target":"$request_uri","status":$status,"body":$body_bytes_sent,'
    '"seconds":$request_time,"sent":$bytes_sent,"done":"$request_completion","chunked":"$sent_http_transfer_encoding"}}';
  ssl_certificate {cert}; ssl_certificate_key {key}; ssl_session_cache off;
  client_body_timeout 1s;
  {extra}
  server {{ listen unix:{folder}/inner.sock; location / {{ echo_sleep 0.5; echo "late"; }} }}
  server {{
    listen 127.0.0.1:{plain} backlog=4096; listen 127.0.0.1:{tls} ssl backlog=4096; access_log {folder}/access.log line;
    location /ok/ {{ return 200 "hello\\n"; }}
    location /echo/ {{ echo_read_request_body; echo_request_body; }}
    location /none/ {{ return 204; }}
    location /same/ {{ return 304; }}
    location /gone/ {{ return 404 "no\\n"; }}
    location /fail/ {{ return 500 "no\\n"; }}
    location /move/ {{ return 302 /ok/; }}
    location /drop/ {{ return 444; }}
    location /wait/ {{ proxy_pass http://unix:{folder}/inner.sock:/; }}
    location /slow/ {{ echo_sleep 0.25; echo "at last"; }}
    location /chunked/ {{ echo "one,"; echo "two and"; echo_flush; echo "three"; }}
    location /file/ {{ rewrite ^ /{file} break; root {folder}; }}
  }}
}}
"""


class Nginx(NamedTuple):
    """Its two ports and where it logs."""

    plain: int
    tls: int
    log: Path
    pid: int

    def lines(self) -> list[dict[str, Any]]:
        """Log lines in the shape the other servers write: id, method, target, status, body, ns, head, complete.

        408, 444 (nginx closed) and 499 (the client went) without a byte sent have no response head. Of a chunked body the log
        counts the framing as well, so `body` is None there: the clients' count is the measure.
        """
        out = []
        for text in self.log.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            head = line["sent"] > 0
            out.append(
                {
                    "id": line["target"].split("/")[2].split("?")[0],
                    "method": line["method"],
                    "target": line["target"],
                    "status": line["status"] if head else 0,
                    "body": None if line["chunked"] == "chunked" else line["body"],
                    "ns": round(line["seconds"] * 1e9),
                    "head": head,
                    "complete": line["done"] == "OK" and head,
                }
            )
        return out


def start(fleet: Fleet, file: Path, workers: int = 1, extra: str = "", name: str = "nginx") -> Nginx:
    """nginx in the fleet's cgroup; `file` (inside the fleet's folder) is what /file/ serves."""
    folder = fleet.folder
    plain, tls = free_port(), free_port()
    cert, key = fleet.cert
    config = folder / f"{name}.conf"
    config.write_text(
        CONFIG.format(folder=folder, plain=plain, tls=tls, cert=cert, key=key, workers=workers, extra=extra, file=file.name),
        encoding="utf-8",
    )
    command = ["nginx", "-p", str(folder), "-e", f"{folder}/nginx.err", "-c", str(config)]
    process = fleet.serve(command, name, (plain, tls))
    return Nginx(plain, tls, folder / "access.log", process.pid)
