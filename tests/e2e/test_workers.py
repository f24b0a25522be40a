"""Several workers behind one port: one state, one admin port, one log; a worker that ends is replaced and takes only its own along."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.e2e.test_quarantine import quarantine
from tests.harness.client import RawClient, get
from tests.harness.load import Load
from tests.harness.mesh import SHOP, Mesh
from tests.harness.ports import free_port
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.upstream import Exchange

ALLOW = {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}
ALLOW_B = {"rules": [{"id": "other", "allow": "anyone", "paths": ["/**"]}, {"id": "no-b", "deny": "anyone", "paths": ["/b"]}]}
BAD = "rules: ["
FIRST = yaml.safe_dump(ALLOW, sort_keys=False).encode()
WORKERS = 2


def configuration(mesh: Mesh, directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "workers": WORKERS,
        "identity": mesh.identity(directory),
        "listeners": {"plain": {"tls": "none", "to": "app"}, "inbound": {"tls": "mutual", "to": "app"}},
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 5,
        **more,
    }


@pytest.fixture(scope="module")
def shared(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("workers")
    made = Proxy(directory, configuration(mesh, directory), policies={"p.yaml": ALLOW})
    made.config["admin"]["token_file"] = "admin.token"
    made.write_config()
    with made.start():
        yield made


@pytest.fixture
def proxy(shared: Proxy) -> Iterator[Proxy]:
    """The one process group of this module, with both workers and the first policy again."""
    wait_serving(shared)
    yield shared
    if shared.process is not None and (shared.directory / "policies" / "p.yaml").read_bytes() != FIRST:
        since = len(shared.stderr.items)
        shared.write_policy("p.yaml", ALLOW)
        shared.stderr.wait(lambda text: "reloaded by all workers" in text, "the first policy again", since=since)


def workers(proxy: Proxy) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = orjson.loads(proxy.admin("/readyz")[1])["workers"]["each"]
    return told


def wait_serving(proxy: Proxy, count: int = WORKERS) -> list[dict[str, Any]]:
    def serving() -> list[dict[str, Any]]:
        return [worker for worker in workers(proxy) if worker["state"] == "serving"]

    eventually(lambda: len(serving()) == count, f"{count} serving workers", 20)
    return serving()


def status(proxy: Proxy, path: str, listener: str = "plain") -> int:
    with RawClient(proxy.address(listener)) as client:
        return client.request(get(path)).status


def replaced(proxy: Proxy) -> None:
    """One worker is killed and has been replaced."""
    victim = steadiest(proxy)
    number = victim["worker"]
    kill(victim)
    eventually(lambda: workers(proxy)[number]["pid"] not in (0, victim["pid"]), "the replacement", 20)
    wait_serving(proxy)


def alive(pid: int) -> bool:
    """It runs: one that has ended and whom nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def steadiest(proxy: Proxy) -> dict[str, Any]:
    """The worker that has served for the longest: its replacement does not have to wait for what earlier tests did."""
    return max(wait_serving(proxy), key=lambda worker: worker["for_s"])


def kill(worker: dict[str, Any]) -> None:
    os.kill(worker["pid"], signal.SIGKILL)


def test_both_serve_and_one_admin_port_tells_of_both(proxy: Proxy, mesh: Mesh) -> None:
    pids = {worker["pid"] for worker in workers(proxy)}
    assert len(pids) == WORKERS
    assert proxy.pid not in pids
    with Load(proxy.address("plain"), kept=0, fresh=4) as load:
        load.more(200)
    assert load.failures == []
    total = load.statuses.total()
    eventually(lambda: proxy.metric("meshguard_requests_total", listener="plain") == total, "the sum of the requests of both")
    with RawClient(proxy.address("inbound"), mesh.client("billing")) as client:
        assert client.request(get("/tls")).status == 200
    text = proxy.metrics()
    accepted = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("process_resident_memory_bytes{")]
    assert len(accepted) == WORKERS, "a gauge stands for each worker"
    assert re.search(r"^meshguard_workers_serving 2$", text, re.MULTILINE)
    assert len(re.findall(r"^meshguard_policy_info\{", text, re.MULTILINE)) == WORKERS
    assert text.count("# TYPE http_server_request_duration_seconds histogram") == 1


def test_the_kernel_deals_connections_to_both(proxy: Proxy) -> None:
    """Each worker has decision ids of its own: both begin appear soon (2 ** -40 is the chance that they do not)."""
    mark = proxy.mark()
    for _ in range(40):
        with RawClient(proxy.address("plain")) as client:
            client.request(get("/x"))
    records = eventually(lambda: proxy.stdout.items[mark:] if len(proxy.stdout.items) >= mark + 40 else None, "the records")
    found = {record["id"].split("-")[0] for record in records}
    assert len(found) == WORKERS


def test_a_crash_loses_only_its_own_connections_and_is_replaced(proxy: Proxy) -> None:
    clients = [RawClient(proxy.address("plain")) for _ in range(16)]
    try:
        for client in clients:
            assert client.request(get("/x")).status == 200
        before = wait_serving(proxy)
        counted = proxy.metric("meshguard_requests_total")
        with Load(proxy.address("plain"), kept=0, fresh=3) as load:
            kill(before[0])
            load.more(60)
            after = wait_serving(proxy)
        lost = 0
        for client in clients:
            try:
                assert client.request(get("/y")).status == 200
            except Exception:
                lost += 1
        assert 0 < lost < 16, "the other worker's connections go on"
        assert len(load.failures) <= 3, "at most what each client had under way in the worker that was killed"
        assert after[1]["pid"] == before[1]["pid"]
        assert after[0]["pid"] != before[0]["pid"]
        assert after[0]["restarts"] == before[0]["restarts"] + 1
        assert proxy.metric("meshguard_requests_total") >= counted, "a sum never falls"
        assert proxy.metric("meshguard_worker_restarts_total", worker="0") == after[0]["restarts"]
    finally:
        for client in clients:
            client.close()


def test_a_reload_is_taken_by_all(proxy: Proxy) -> None:
    before = {worker["policy_digest"] for worker in workers(proxy)}
    reloads = proxy.metric("meshguard_reload_done_total")
    since = len(proxy.stderr.items)
    proxy.write_policy("p.yaml", ALLOW_B)
    proxy.stderr.wait(lambda text: "reloaded by all workers" in text, "the reload", since=since)
    after = {worker["policy_digest"] for worker in workers(proxy)}
    assert len(after) == 1
    assert after != before
    assert {status(proxy, "/b") for _ in range(16)} == {403}
    assert proxy.metric("meshguard_reload_done_total") == reloads + 1


def test_a_bad_reload_is_taken_by_none_and_a_replacement_has_the_last_good_state(proxy: Proxy) -> None:
    before = {worker["policy_digest"] for worker in workers(proxy)}
    since = len(proxy.stderr.items)
    proxy.write_policy("p.yaml", BAD)
    line = proxy.stderr.wait(lambda text: "refused" in text, "the refusal", since=since)
    assert "p.yaml" in line
    assert b"p.yaml" in proxy.admin("/readyz")[1]
    replaced(proxy)
    assert {worker["policy_digest"] for worker in wait_serving(proxy)} == before
    assert {status(proxy, "/b") for _ in range(16)} == {200}
    since = len(proxy.stderr.items)
    proxy.write_policy("p.yaml", ALLOW_B)
    proxy.stderr.wait(lambda text: "reloaded by all workers" in text, "the good document", since=since)
    assert {status(proxy, "/b") for _ in range(16)} == {403}


def test_a_worker_that_is_stopped_does_not_mix_states(proxy: Proxy) -> None:
    """A reload during which one worker dies is taken by the others, and the replacement begins with the new state."""
    victim = steadiest(proxy)
    number = victim["worker"]
    os.kill(victim["pid"], signal.SIGSTOP)
    since = len(proxy.stderr.items)
    proxy.write_policy("p.yaml", ALLOW_B)
    proxy.signal(signal.SIGHUP)
    kill(victim)
    proxy.stderr.wait(lambda text: "reloaded by all workers" in text, "the reload", since=since)
    eventually(lambda: workers(proxy)[number]["pid"] not in (0, victim["pid"]), "the replacement", 20)
    assert len({worker["policy_digest"] for worker in wait_serving(proxy)}) == 1
    assert {status(proxy, "/b") for _ in range(16)} == {403}


def test_a_new_listener_is_opened_and_a_removed_one_closed_by_all(proxy: Proxy) -> None:
    port = free_port()
    proxy.config["listeners"]["second"] = {"tls": "none", "to": "app", "address": f"127.0.0.1:{port}"}
    proxy.ports["second"] = port
    since = len(proxy.stderr.items)
    proxy.write_config()
    proxy.stderr.wait(lambda text: "reloaded by all workers" in text, "the reload", since=since)
    assert {status(proxy, "/a", "second") for _ in range(16)} == {200}
    del proxy.config["listeners"]["second"]
    since = len(proxy.stderr.items)
    proxy.write_config()
    proxy.stderr.wait(lambda text: "reloaded by all workers" in text, "the reload", since=since)
    with pytest.raises(OSError):  # noqa: PT011  # whatever the system calls it
        status(proxy, "/a", "second")


def test_certificates_rotate_in_every_worker(proxy: Proxy, mesh: Mesh) -> None:
    since = len(proxy.stderr.items)
    mesh.ca.service("meshguard").write(proxy.directory, "svid")
    for number in range(WORKERS):
        line = proxy.stderr.wait(lambda text: "identity rotated" in text, f"rotation {number}", since=since)
        since = proxy.stderr.items.index(line, since) + 1
    with RawClient(proxy.address("inbound"), mesh.client("billing")) as client:
        assert client.request(get("/x")).status == 200


def test_lines_of_the_decision_log_never_mix(proxy: Proxy) -> None:
    """Long lines, a pipe, two writers, one of which is killed in the middle: every line is whole but for one per kill."""
    before = len(proxy.stdout.raw)
    mark = proxy.mark()
    clients = [RawClient(proxy.address("plain")) for _ in range(8)]
    path = "/" + "x" * 1800
    for round_ in range(30):
        if round_ == 15:
            kill(steadiest(proxy))
        for client in clients:
            client.send(get(path) * 4, expect=["GET"] * 4)
        for index, client in enumerate(clients):
            try:
                for _ in range(4):
                    client.response()
            except Exception:
                client.close()
                clients[index] = RawClient(proxy.address("plain"))
    for client in clients:
        client.close()
    proxy.decision_where(lambda record: record["what"]["path"] == "/end" or status(proxy, "/end"), "the last record", mark)
    lines = bytes(proxy.stdout.raw[before:]).splitlines()
    broken = [line for line in lines if line and not _whole(line)]
    assert len(lines) > 600
    assert len(broken) <= 1, broken[:2]


def test_a_quarantine_reaches_all_workers_at_once_and_those_that_come(proxy: Proxy, mesh: Mesh) -> None:
    def codes() -> set[str]:
        found = set()
        for _ in range(12):
            with RawClient(proxy.address("inbound"), mesh.client("support")) as client:
                answer = client.request(get("/x"))
                found.add(answer.problem["code"] if answer.status == 403 else str(answer.status))
        return found

    assert codes() == {"200"}
    quarantine(proxy, "add", SHOP + "support", "--reason", "leaked")
    assert codes() == {"quarantined"}, "in force everywhere when the command has ended"
    replaced(proxy)
    assert codes() == {"quarantined"}
    assert SHOP + "support" in quarantine(proxy, "list")
    quarantine(proxy, "remove", SHOP + "support")
    assert codes() == {"200"}
    assert proxy.admin("/quarantine")[0] == 401


def test_top_shows_what_happens(proxy: Proxy, mesh: Mesh) -> None:
    """`meshguard top --once`, as text and as JSON, over both workers; a request that hangs is shown while it is open."""
    leave = mesh.upstream.event()

    async def slow(exchange: Exchange) -> None:
        await exchange.read()
        await leave.wait()
        await exchange.answer(200, b"done")

    with (
        mesh.upstream.on("/hang", slow),
        RawClient(proxy.address("inbound"), mesh.client("billing")) as hanging,
        Load(proxy.address("plain"), kept=1, fresh=1),
    ):
        mark = mesh.upstream.mark()
        hanging.send(get("/hang?secret=value"), expect="GET")
        mesh.upstream.wait(lambda: any(seen.path == "/hang" for seen in mesh.upstream.requests[mark[0] :]), "the request")
        shown = orjson.loads(run_top(proxy, "--json"))
        assert shown["total"]["allow_per_s"] > 0
        (route,) = [row for row in shown["routes"] if row["listener"] == "plain"]
        assert route["per_s"] > 0
        assert 0 < route["p50_s"] <= route["p99_s"] < 60
        assert [row["caller"] for row in shown["callers"]] == ["(nobody)"]
        assert shown["workers"]["serving"] == WORKERS
        assert shown["clusters"]["app"]["endpoints"] == {f"127.0.0.1:{mesh.upstream.port}": True}
        (open_,) = [request for request in shown["requests"] if request["path"] == "/hang"]
        assert open_["state"] == "waiting"
        assert open_["caller"].endswith("/billing")
        text = run_top(proxy).decode()
        assert "secret" not in text + orjson.dumps(shown).decode()
        for word in ("plain/plain", "(nobody)", "workers 2 of 2", "/hang", "app", "policy "):
            assert word in text
        assert "\x1b" not in text
        leave.set()
        assert hanging.response().status == 200


def run_top(proxy: Proxy, *options: str) -> bytes:
    command = [sys.executable, "-m", "meshguard", "top", "--config", str(proxy.config_path), "--once", "--interval", "0.5"]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, check=True, timeout=30).stdout


def _whole(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def test_the_template_is_started_again_and_replaces_as_before(proxy: Proxy) -> None:
    children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
    assert len(children) == 1, "workers are the template's children"
    since = len(proxy.stderr.items)
    os.kill(int(children[0]), signal.SIGKILL)
    proxy.stderr.wait(lambda text: "the template has ended" in text, "the report", since=since)
    assert {status(proxy, "/b") for _ in range(8)} == {200}
    replaced(proxy)


def test_crash_loops_back_off_and_nobody_waits_in_a_queue(proxy: Proxy) -> None:
    """Every new worker is killed as soon as it is seen: the tries get rarer, and meanwhile the other one serves everybody."""
    with Load(proxy.address("plain"), kept=0, fresh=2) as load:
        delays: list[float] = []
        since = len(proxy.stderr.items)
        for _ in range(4):
            victim = next(worker for worker in wait_serving(proxy) if worker["worker"] == 0)
            kill(victim)
            line = proxy.stderr.wait(lambda text: "a worker is gone" in text, "the report of the crash", since=since)
            since = proxy.stderr.items.index(line, since) + 1
            delays.append(orjson.loads(line)["data"]["again_in_s"])
            load.more(20)
        assert all(answer == 200 for answer in load.statuses)
    assert delays[-1] > delays[-2] > 0, "longer each time, after the first"


def test_the_end_is_orderly(shared: Proxy) -> None:
    """The last one with this process group. SIGTERM: what runs is answered, then all processes end with status 0."""
    pids = [worker["pid"] for worker in wait_serving(shared)]
    with RawClient(shared.address("plain")) as client:
        assert client.request(get("/x")).status == 200
        assert shared.stop() == 0
    assert not any(alive(pid) for pid in pids)


def test_workers_do_not_outlive_their_supervisor(mesh: Mesh, tmp_path: Path) -> None:
    with Proxy(tmp_path, configuration(mesh, tmp_path), policies={"p.yaml": ALLOW}) as proxy:
        pids = [worker["pid"] for worker in wait_serving(proxy)]
        proxy.signal(signal.SIGKILL)
        eventually(lambda: not any(alive(pid) for pid in pids), "the end of the workers", 10)


def test_a_start_that_fails_says_why_and_ends(mesh: Mesh, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, configuration(mesh, tmp_path), policies={"p.yaml": BAD})
    with pytest.raises(AssertionError, match=r"p\.yaml"):
        proxy.start()


@pytest.mark.parametrize("value", ["0", "257", "many"])
def test_a_wrong_number_is_refused(value: str, mesh: Mesh, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, configuration(mesh, tmp_path, workers=value), policies={"p.yaml": ALLOW})
    with pytest.raises(AssertionError, match="workers"):
        proxy.start()
