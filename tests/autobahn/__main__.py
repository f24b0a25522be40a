"""`python -m tests.autobahn`: installs the suite once, runs it, compares, exits with 1 where a verdict differs or a case fails.

The suite needs Python 2.7 (`--python2`, or `python2.7` on the PATH); the echo server is the suite's own. Needs no other package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness.ports import free_port
from tests.harness.proxy import ROOT, Proxy, eventually

HOME = ROOT / ".autobahn"
GOOD = frozenset(("OK", "INFORMATIONAL", "NON-STRICT"))
SLOW = ("9.*", "12.*", "13.*")
"""Large messages and compression: most of the time."""


ECHO = """from twisted.internet import reactor
from autobahntestsuite.testee import TesteeServerFactory
reactor.listenTCP({port}, TesteeServerFactory("ws://127.0.0.1:{named}"), interface="127.0.0.1")
reactor.run()
"""
"""The suite's echo server. It insists on the port that `Host` names, so the one behind the proxy has to be told the proxy's."""


def python2_with_suite(python2: str) -> Callable[[str], list[str]]:
    """The command that runs a piece of Python 2 with the suite, which is installed on first use."""
    packages = HOME / "packages"
    if not (packages / "autobahntestsuite").is_dir():
        subprocess.run([python2, "-m", "pip", "install", "--quiet", "--target", str(packages), "autobahntestsuite"], check=True)
    start = f"import site; site.addsitedir({str(packages)!r})\n"
    return lambda source: [python2, "-W", "ignore", "-c", start + source]


def verdicts(out: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """agent -> case -> (behaviour, behaviour at the close)."""
    index = json.loads((out / "index.json").read_text())
    return {
        agent: {case: (result["behavior"], result["behaviorClose"]) for case, result in cases.items()} for agent, cases in index.items()
    }


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def in_order(case: str) -> tuple[int, ...]:
    return tuple(int(part) for part in case.split("."))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    parser.add_argument("--python2", default=shutil.which("python2.7") or "python2.7")
    parser.add_argument("--cases", nargs="*", default=["*"], help='for example "1.*" "6.4.*"; default all')
    parser.add_argument("--quick", action="store_true", help="without large messages and compression")
    options = parser.parse_args()
    command = python2_with_suite(options.python2)
    out = HOME / "reports"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((out / "echo.log").open("wb"))

        def echo(named: int) -> int:
            port = free_port()
            source = ECHO.format(port=port, named=named or port)
            server = subprocess.Popen(command(source), cwd=out, stdout=log, stderr=log)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            eventually(lambda: listening(port), "the echo server", 30)
            return port

        front = free_port()
        configuration: dict[str, Any] = {
            "listeners": {"default": {"tls": "none", "to": "echo", "_port": front}},
            "clusters": {"echo": {"endpoints": [f"127.0.0.1:{echo(front)}"]}},
        }
        everything = {"all.yaml": {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}}
        proxy = stack.enter_context(Proxy(directory, configuration, policies=everything))
        spec = {
            "outdir": str(out),
            "servers": [
                {"agent": "direct", "url": f"ws://127.0.0.1:{echo(0)}"},
                {"agent": "proxied", "url": f"ws://127.0.0.1:{front}"},
            ],
            "cases": options.cases,
            "exclude-cases": list(SLOW) if options.quick else [],
            "exclude-agent-cases": {},
        }
        (out / "spec.json").write_text(json.dumps(spec))
        with (out / "client.log").open("wb") as said:
            run = "from autobahntestsuite.wstest import run; import sys; sys.argv[1:] = ['-m', 'fuzzingclient', '-s', 'spec.json']; run()"
            subprocess.run(command(run), cwd=out, stdout=said, stderr=said, check=True)
        assert "Traceback" not in proxy.stderr_text, proxy.stderr_text[-4000:]
    found = verdicts(out)
    direct, proxied = found["direct"], found["proxied"]
    different = [case for case in sorted(direct, key=in_order) if direct[case] != proxied.get(case)]
    bad = [case for case, result in proxied.items() if not set(result) <= GOOD]
    for case in different:
        print(f"{case}: directly {'/'.join(direct[case])}, through the proxy {'/'.join(proxied.get(case, ('missing',)))}")
    for case in bad:
        print(f"{case}: {'/'.join(proxied[case])} through the proxy")
    counts: dict[str, int] = {}
    for result in proxied.values():
        counts[result[0]] = counts.get(result[0], 0) + 1
    print(f"{len(direct)} cases, {len(different)} verdicts differ; through the proxy: {counts}; reports in {out}")
    return 1 if different or bad or not direct or direct.keys() != proxied.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
