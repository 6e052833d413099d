# SPDX-License-Identifier: Apache-2.0
"""The operator's page of a real gateway process, read as a browser, a probe and a stranger would read it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the page needs the extra [gateway]")

from fl_tiny import statedir
from fl_tiny.device.layout import PSK
from fl_tiny.device.link import Link
from fl_tiny.gateway.web import Hosts
from fl_tiny.protocol import wire

MODEL = Path(__file__).parents[1] / "models" / "silabs" / "tflite_micro_magic_wand.tflite"
HOSTILE = "<img src=x onerror=alert(1)>"
FL_TINY = [sys.executable, "-m", "fl_tiny"]
PATIENCE_S = 30.0


@dataclass
class Running:
    """A gateway process and where its page is."""

    process: subprocess.Popen[str]
    directory: Path
    host: str
    port: int

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        link = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            link.request(method, path, headers=headers)
            answer = link.getresponse()
            return answer, answer.read()
        finally:
            link.close()

    def state(self) -> Any:
        return json.loads(self.ask("/state.json")[1])


def fl_tiny(*args: object) -> Any:
    done = subprocess.run([*FL_TINY, *map(str, args), "--json"], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def start(directory: Path, web: str = "127.0.0.1:0") -> Running:
    fl_tiny("gateway", "init", directory, "--model", MODEL)
    command = [*FL_TINY, "gateway", "run", str(directory), "--bind", "127.0.0.1:0", "--web", web, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "web":
            uri = urlsplit(event["uri"])
            assert uri.hostname is not None and uri.port
            return Running(process, directory, uri.hostname, uri.port)
    raise AssertionError(f"no page: {process.communicate()[1]}")


def end(process: subprocess.Popen[str]) -> str:
    """Terminate the gateway and return what it wrote to stderr."""
    process.terminate()
    return process.communicate(timeout=PATIENCE_S)[1]


def wait_until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(tmp_path_factory.mktemp("web") / "a gateway")
    try:
        code = fl_tiny("gateway", "pair", running.directory)["code"]
        fl_tiny("device", "enroll", running.directory.parent / "device", "--code", code, "--name", HOSTILE)
        wait_until(lambda: running.state()["devices"][0]["last_seen_s"] is not None)  # written within five seconds
        wait_until(lambda: running.state()["status"]["state"] == "open")  # for the device that has just been there
        yield running
    finally:
        end(running.process)


def test_the_state_says_what_the_commands_say(gateway: Running) -> None:
    state = gateway.state()
    status = fl_tiny("gateway", "status", gateway.directory)
    assert {key: state["status"][key] for key in status} == status
    assert state["status"]["published"] == 0 and 0 < state["status"]["left_s"] <= 600
    (device,) = state["devices"]
    (row,) = fl_tiny("gateway", "devices", gateway.directory)
    assert {key: device[key] for key in row if key != "last_seen_s"} == {
        key: row[key] for key in row if key != "last_seen_s"
    }
    assert isinstance(device["online"], bool)
    assert state["rounds"] == fl_tiny("gateway", "rounds", gateway.directory)
    facts = (MODEL.stem, 2, 3668, MODEL.stat().st_size, None)  # 224 x 16 + 16 + 16 x 4 + 4 parameters
    assert tuple(state["model"][key] for key in ("name", "layers", "parameters", "size", "labels")) == facts
    assert state["traffic"]["bytes_in"] > 0 and state["traffic"]["handshakes_ok"] >= 1
    assert state["pair"] == f"fl-tiny gateway pair '{gateway.directory}'"


def test_no_code_or_key_is_on_the_page(gateway: Running) -> None:
    code = fl_tiny("gateway", "pair", gateway.directory)["code"]
    with sqlite3.connect(f"file:{gateway.directory / 'state.db'}?mode=ro", uri=True) as db:
        secrets = [value for row in db.execute("SELECT psk, pk FROM device") for value in row]
        secrets += [value for row in db.execute("SELECT token, secret FROM pairing") for value in row]
    assert len(secrets) >= 4
    for path in ("/", "/state.json"):
        shown = gateway.ask(path)[1].decode()
        assert code not in shown and "FL1:" not in shown
        for secret in secrets:
            assert secret.hex() not in shown and base64.b64encode(secret).decode() not in shown


def test_a_device_name_is_data_and_never_markup(gateway: Running) -> None:
    answer, body = gateway.ask("/state.json")
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert json.loads(body)["devices"][0]["name"] == HOSTILE
    page = gateway.ask("/")[1].decode()
    assert HOSTILE not in page
    for writes_markup in ("innerHTML =", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert writes_markup not in page


def test_the_policy_allows_the_page_and_nothing_else(gateway: Running) -> None:
    answer, body = gateway.ask("/")
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for element in ("script", "style"):
        (text,) = re.findall(rb"<%b>(.*?)</%b>" % (element.encode(), element.encode()), body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert policy[f"{element}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert not re.findall(rb"""(?:src|href)=["'](?!data:,)|url\(|@import|\sstyle=|\son[a-z]+=""", body)


@pytest.mark.parametrize("path", ["/", "/state.json", "/healthz", "/nothing"])
def test_every_answer_carries_the_headers(gateway: Running, path: str) -> None:
    answer, _ = gateway.ask(path)
    assert answer.status == (404 if path == "/nothing" else 200)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers


def test_a_probe_gets_ok_and_head_gets_no_body(gateway: Running) -> None:
    assert gateway.ask("/healthz")[1] == b"ok"
    answer, body = gateway.ask("/", "HEAD")
    assert answer.status == 200 and int(answer.headers["content-length"]) > 1000 and body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_allowed(gateway: Running, method: str) -> None:
    answer, _ = gateway.ask("/state.json", method)
    assert answer.status == 405 and answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.7", "", "["],
)
def test_a_name_rebound_to_loopback_reads_nothing(gateway: Running, name: str) -> None:
    for path in ("/", "/state.json", "/healthz"):
        answer, body = gateway.ask(path, Host=name)
        assert answer.status == 421 and MODEL.stem.encode() not in body


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:9999", "127.0.0.1", "[::1]:8080", "127.0.0.1:1"])
def test_loopbacks_own_names_are_answered_on_any_port(gateway: Running, name: str) -> None:
    assert gateway.ask("/healthz", Host=name)[0].status == 200


def test_a_view_writes_nothing_to_the_store(gateway: Running) -> None:
    files = [gateway.directory / "state.db", gateway.directory / "state.db-wal"]
    for _ in range(5):
        before = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        for _ in range(2):
            gateway.state()
            time.sleep(1.1)  # past what is kept for other viewers
        if before == [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]:
            return  # a try may meet the gateway's own writing, every five seconds
    raise AssertionError("the store changed while only the page was read")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_gateway_ends_at_once_and_frees_the_port(tmp_path: Path, number: int) -> None:
    running = start(tmp_path / "gw")
    idle = socket.create_connection((running.host, running.port))  # never asks
    kept = http.client.HTTPConnection(running.host, running.port, timeout=PATIENCE_S)
    kept.request("GET", "/state.json")
    kept.getresponse().read()  # and stays open
    began = time.monotonic()
    running.process.send_signal(number)
    _, log = running.process.communicate(timeout=PATIENCE_S)
    took = time.monotonic() - began
    idle.close()
    kept.close()
    assert running.process.returncode == (0 if number == signal.SIGTERM else 130), log
    assert took < 2.0
    assert "Traceback" not in log and "rror" not in log, log
    socket.create_server((running.host, running.port)).close()


def test_an_address_in_use_ends_the_gateway_with_a_hint(tmp_path: Path) -> None:
    directory = tmp_path / "gw"
    fl_tiny("gateway", "init", directory, "--model", MODEL)
    with socket.create_server(("127.0.0.1", 0)) as other:
        web = f"127.0.0.1:{other.getsockname()[1]}"
        command = [*FL_TINY, "gateway", "run", str(directory), "--bind", "127.0.0.1:0", "--web", web, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 69, done.stderr
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("fl-tiny: --web") and "Address already in use (choose" in last
    assert "Traceback" not in done.stderr
    end(start(tmp_path / "again").process)  # nothing was left behind that another gateway would meet


@pytest.mark.parametrize("web", ["0.0.0.0:0", "[::]:0"])
def test_a_page_open_to_the_network_says_so_and_answers_to_addresses_and_its_machines_name(
    tmp_path: Path, web: str
) -> None:
    running = start(tmp_path / "gw", web)
    machine = socket.gethostname()
    try:
        running.host = "127.0.0.1"
        for name in ("192.0.2.7:8080", "[2001:db8::7]:80", "localhost:1", machine, f"{machine.upper()}:8080"):
            assert running.ask("/healthz", Host=name)[0].status == 200, name
        for name in ("gateway.example", "192.0.2.7.example", f"{machine}.evil.example", "[2001:db8::7", "", "0x7f.1"):
            assert running.ask("/state.json", Host=name)[0].status == 421, name
    finally:
        log = end(running.process)
    assert "WARNING" in log and "without authentication" in log


def test_a_page_bound_to_one_address_or_name_answers_to_it_and_to_loopbacks_names() -> None:
    lan, v6 = (
        Hosts(ip_address(text), name) for text, name in (("192.0.2.7", "gate.lan"), ("2001:db8::7", "2001:db8::7"))
    )
    for host in ("192.0.2.7", "192.0.2.7:8080", "gate.lan:80", "GATE.LAN.", "127.0.0.1", "localhost"):
        assert lan.take(host), host
    for host in ("192.0.2.8", "other.lan", "gate.lan.evil.example", "[::ffff:192.0.2.9]", socket.gethostname(), ""):
        assert not lan.take(host), host
    assert v6.take("[2001:db8::7]:8080") and v6.take("[2001:DB8:0::7]") and not v6.take("[2001:db8::8]")


def test_two_hosts_in_one_request_are_refused(gateway: Running) -> None:
    with socket.create_connection((gateway.host, gateway.port)) as link:
        link.sendall(b"GET /state.json HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert link.recv(100).split()[1] in (b"400", b"421")


def test_a_device_that_was_heard_is_online_whichever_model_it_holds(tmp_path: Path) -> None:
    running, device = start(tmp_path / "gw"), tmp_path / "device"
    try:
        fl_tiny("device", "enroll", device, "--code", fl_tiny("gateway", "pair", running.directory)["code"])
        uri = urlsplit(fl_tiny("gateway", "status", running.directory)["uri"])

        async def hold_another() -> None:
            did = bytes.fromhex(fl_tiny("device", "status", device)["id"])
            assert uri.hostname and uri.port
            link = await Link.open((uri.hostname, uri.port), did.hex(), statedir.read_secret(device, PSK))
            await link.heartbeat(wire.Heartbeat(0, 12, model=7))
            await link.close()

        asyncio.run(hold_another())
        wait_until(lambda: running.state()["devices"][0]["model"] == 7)
        state = running.state()
        assert state["devices"][0]["online"] and state["model"]["counter"] == 1
    finally:
        end(running.process)


def test_strangers_who_never_ask_take_neither_the_page_nor_the_descriptors(gateway: Running) -> None:
    idle = [socket.create_connection((gateway.host, gateway.port)) for _ in range(200)]
    try:
        assert gateway.ask("/healthz")[0].status == 200
        assert len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())) < 100
        for stranger in idle[:20]:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert gateway.ask("/healthz")[0].status == 200
    finally:
        for stranger in idle:
            stranger.close()
