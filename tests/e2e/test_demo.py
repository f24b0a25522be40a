"""The demonstration as a user runs it: every request of the tour answers as it says, and Ctrl-C ends everything."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshguard.demo.orders import OrdersService
from meshguard.demo.place import Place
from meshguard.demo.scenario import STEPS, Answer, Ports, ask, command, mismatch

ANY_PORTS = ("--port", "0", "--service-port", "0", "--admin-port", "0")


def demo(directory: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "meshguard", "demo", "--directory", str(directory), *arguments]


def test_check_finds_every_answer_as_said(tmp_path: Path) -> None:
    done = subprocess.run(demo(tmp_path / "demo", "--check", *ANY_PORTS), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == len(STEPS)
    # The decision log has no secret, and a line for each request that reached a decision.
    log = (tmp_path / "demo" / "decisions.log").read_text()
    assert "4111111111111111" not in log
    assert len(log.splitlines()) >= sum(step.scheme == "https" and step.status > 0 for step in STEPS)


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running demonstration and what it has printed."""
    process = subprocess.Popen(demo(tmp_path / "demo", *ANY_PORTS), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    printed = ""
    try:
        for line in process.stdout:  # ends with the last line that it prints, or with the process
            printed += line
            if line.startswith("Every decision"):
                break
        yield process, printed
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(15)
        process.stdout.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not here")
def test_printed_commands_do_what_they_say(tour: tuple[subprocess.Popen[str], str]) -> None:
    _, printed = tour
    commands = [line for line in printed.splitlines() if line.startswith("curl ")]
    assert len(commands) == len(STEPS), printed
    for step, line in zip(STEPS, commands, strict=True):
        done = subprocess.run([*shlex.split(line), "-w", "\n%{http_code}"], capture_output=True, text=True, timeout=15, check=False)
        body, _, status = done.stdout.rpartition("\n")
        assert mismatch(step, Answer(int(status), body)) == "", line
        assert (done.returncode == 0) == (step.status != 0), line


def test_edited_policy_is_taken_over_and_interrupt_ends_all(tour: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, printed = tour
    match = re.search(r"meshguard on https://127.0.0.1:(\d+) .* on http://127.0.0.1:(\d+)", printed)
    assert match, printed
    ports = Ports(int(match[1]), int(match[2]))
    place = Place(tmp_path / "demo")
    assert ask(STEPS[0], place, ports).status == 200
    policy = tmp_path / "demo" / "policies" / "orders.yaml"
    changed = tmp_path / "changed.yaml"
    changed.write_text(
        policy.read_text().replace("allow: [billing, support]", "allow: [support]").replace("  - {as: billing, call: GET /orders/1", "  # ")
    )
    os.replace(changed, policy)
    deadline = time.monotonic() + 10
    while ask(STEPS[0], place, ports).status != 403:
        assert time.monotonic() < deadline, (tmp_path / "demo" / "meshguard.log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    for port in (ports.proxy, ports.service):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1).close()


def test_used_port_falls_back_to_a_free_one(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ("--check", "--port", port, "--service-port", "0", "--admin-port", "0")
        done = subprocess.run(demo(tmp_path / "demo", *arguments), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"port {port} for the proxy is in use: taking " in done.stdout


def test_a_broken_configuration_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "meshguard.yaml").write_text("profile: development\nlisteners: {}\n")
    done = subprocess.run(demo(tmp_path / "demo", "--check", *ANY_PORTS), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the proxy ended at once" in done.stderr
    assert "meshguard.yaml" in done.stderr


def test_documents_of_the_user_stay_and_identities_are_kept(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.prepare()
    place.configuration.write_text("mine")
    before = place.certificate("billing").read_bytes()
    place.prepare()
    assert place.configuration.read_text() == "mine"
    assert place.certificate("billing").read_bytes() == before
    assert place.key("billing").stat().st_mode & 0o777 == 0o600
    place.key("billing").write_bytes(place.key("support").read_bytes())  # a key of another: made anew
    place.prepare()
    assert place.certificate("billing").read_bytes() != before


def test_the_service_stores_what_it_is_sent() -> None:
    service = OrdersService()
    service.start()
    try:
        assert service.answer("POST", "/orders", b"[]") == (400, {"error": "an order is an object"})
        assert service.answer("POST", "/orders", b"{") == (400, {"error": "not JSON"})
        status, order = service.answer("POST", "/orders", json.dumps({"item": "tent", "id": "x"}).encode())
        assert (status, order) == (201, {"item": "tent", "id": "2"})
        assert service.answer("GET", "/orders/2?expand=1", b"") == (200, order)
        assert service.answer("GET", "/orders/3", b"")[0] == 404
    finally:
        service.stop()


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    place, ports = Place(tmp_path / "a directory"), Ports(8443, 8080)
    for step in STEPS:
        words = shlex.split(command(step, place, ports))
        assert words[0] == "curl"
        assert words[-1].endswith(step.path)
        assert ("--cert" in words) == (step.client is not None)
    assert words[-1] == "http://127.0.0.1:8080/_store"
