"""An S3 server on loopback in a process of its own, behind a proxy that fails when it is told to.

    python object_store.py              prints {"direct": PORT, "faulty": PORT} and serves until its
                                        standard input ends: never longer than whoever started it lives

The server is moto's. The proxy passes every request on, unless a rule says otherwise, and remembers what it was asked.
Rules are set at its path /_faults, also while a study in other processes uses the store.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: What pyarrow's S3 client has to find in the environment, here and in Ray's workers.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}

#: Where rules are set and requests are read.
_CONTROL = "/_faults"

#: What a rule can do with a request.
#:
#: error     answer `status` with S3's error `code`, without asking the server
#: hang      take the request, answer nothing, until the rule is lifted
#: drop      take half of the request's body and reset the connection
#: cut       ask the server and send half of its answer's body
#: forget    let the server do it and reset the connection before the answer
ACTIONS = ("error", "hang", "drop", "cut", "forget")


@dataclass
class Rule:
    """What to do with which requests: the first rule that matches decides.

    Args:
        action: one of `ACTIONS`.
        method: a regular expression for all of the method.
        key: a regular expression that is searched in the path and its query.
        skip: so many matching requests are passed on first.
        count: so many are failed; None for all.
        status: the HTTP status of an `error`.
        code: its S3 code.
    """

    action: str
    method: str = ".*"
    key: str = ""
    skip: int = 0
    count: int | None = None
    status: int = 500
    code: str = "InternalError"

    def takes(self, method: str, path: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.key, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.count is not None:
            self.count -= 1
            return self.count >= 0
        return True


@dataclass
class Faults:
    """The rules in force, and what was asked so far."""

    rules: list[Rule] = field(default_factory=list)
    asked: list[tuple[float, str, str, str]] = field(default_factory=list)
    version: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def set(self, rules: list[dict]) -> None:
        with self.guard:
            self.rules = [Rule(**rule) for rule in rules]
            self.version += 1

    def judge(self, method: str, path: str) -> Rule | None:
        with self.guard:
            rule = next((rule for rule in self.rules if rule.takes(method, path)), None)
            self.asked.append((time.time(), method, path, rule.action if rule else ""))
            return rule

    def wait_until_lifted(self, at_most: float = 600.0) -> None:
        version, deadline = self.version, time.monotonic() + at_most
        while self.version == version and time.monotonic() < deadline:
            time.sleep(0.05)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to `upstream`, or fails them."""

    protocol_version = "HTTP/1.1"
    upstream: int
    faults: Faults

    def handle_one_request(self) -> None:
        # A client that goes away in the middle is a fault that was asked for.
        with suppress(ConnectionError, TimeoutError, ValueError):
            super().handle_one_request()
            return
        self.close_connection = True

    def answer(self):
        if self.path == _CONTROL:
            self.control()
            return
        rule = self.faults.judge(self.command, self.path)
        if rule is not None and rule.action == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.reset()
            return
        body = self.body()
        if rule is not None and rule.action == "error":
            self.error(rule)
            return
        if rule is not None and rule.action == "hang":
            self.faults.wait_until_lifted()
            self.reset()
            return
        server = HTTPConnection("127.0.0.1", self.upstream)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "expect"):
                server.putheader(name, value)
        server.putheader("Content-Length", str(len(body)))
        server.endheaders(body)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if rule is not None and rule.action == "forget":
            self.reset()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if rule is not None and rule.action == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.reset()
            return
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def error(self, rule: Rule) -> None:
        content = b""
        if self.command != "HEAD":
            content = f"<Error><Code>{rule.code}</Code><Message>as the test asked</Message></Error>".encode()
        self.send_response(rule.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reset(self) -> None:
        """Close without a goodbye: the peer sees a reset, as from a machine that has crashed."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def control(self) -> None:
        if self.command == "PUT":
            self.faults.set(json.loads(self.body()))
        elif self.command == "DELETE":
            self.faults.asked.clear()
        content = json.dumps(self.faults.asked).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Not on the terminal: `Faults.asked` has it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # More than the kernel's default of five, for many workers at once.
    request_queue_size = 128

    def shutdown_request(self, request: object) -> None:
        with suppress(OSError):
            super().shutdown_request(request)


def serve() -> None:
    """The server and the proxy, until the standard input ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    handler = type("Handler", (Proxy,), {"upstream": port, "faults": Faults()})
    proxy = _Server(("127.0.0.1", 0), handler)
    print(json.dumps({"direct": port, "faulty": proxy.server_address[1]}), flush=True)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


class ObjectStore:
    """The running pair, as a test sees it. A context: killed at its end."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        ports = json.loads(self.process.stdout.readline())
        self.direct, self.faulty = ports["direct"], ports["faulty"]

    def __enter__(self) -> ObjectStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(30)

    def make_bucket(self, bucket: str) -> str:
        self._ask(self.direct, "PUT", f"/{bucket}")
        return bucket

    def uri(self, bucket: str, *, faulty: bool = True) -> str:
        """The bucket's address as a user gives it in `--storage`."""
        port = self.faulty if faulty else self.direct
        return f"s3://{bucket}?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"

    def fail(self, *rules: Rule) -> None:
        """These rules from now on; without any the store is whole again."""
        self._ask(self.faulty, "PUT", _CONTROL, json.dumps([asdict(rule) for rule in rules]).encode())

    @contextmanager
    def failing(self, *rules: Rule):
        self.fail(*rules)
        try:
            yield
        finally:
            self.fail()

    def forget(self) -> None:
        """Begin the list of requests anew."""
        self._ask(self.faulty, "DELETE", _CONTROL)

    def asked(self, method: str = ".*", key: str = "", action: str | None = None) -> list[tuple[float, str, str, str]]:
        """When, with which method and for what the proxy was asked, and what it did (empty: passed it on)."""
        found = json.loads(self._ask(self.faulty, "GET", _CONTROL))
        return [
            (when, how, path, did)
            for when, how, path, did in found
            if re.fullmatch(method, how) and re.search(key, path) and action in (None, did)
        ]

    def _ask(self, port: int, method: str, path: str, body: bytes | None = None) -> bytes:
        # Whatever proxy the environment names is none for loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, method=method)
        with opener.open(request, timeout=30) as answer:
            return answer.read()


if __name__ == "__main__":
    # Moto's own clients must not look for credentials.
    os.environ.update(CREDENTIALS)
    serve()
