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
from pathlib import Path
from typing import Any

from tests.harness.proxy import ROOT, Proxy, eventually, free_port

HOME = ROOT / ".autobahn"
GOOD = frozenset(("OK", "INFORMATIONAL", "NON-STRICT"))
SLOW = ("9.*", "12.*", "13.*")
"""Large messages and compression: most of the time."""


def suite(python2: str) -> list[str]:
    """The command that runs `wstest`, installed on first use."""
    packages = HOME / "packages"
    if not (packages / "autobahntestsuite").is_dir():
        subprocess.run([python2, "-m", "pip", "install", "--quiet", "--target", str(packages), "autobahntestsuite"], check=True)
    start = f"import site, sys; site.addsitedir({str(packages)!r}); from autobahntestsuite.wstest import run; run()"
    return [python2, "-W", "ignore", "-c", start]


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
    command = suite(options.python2)
    out = HOME / "reports"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        log = stack.enter_context((out / "echo.log").open("wb"))
        server = subprocess.Popen([*command, "-m", "testeeserver", "-w", f"ws://127.0.0.1:{port}"], cwd=out, stdout=log, stderr=log)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        eventually(lambda: listening(port), "the echo server", 30)
        configuration: dict[str, Any] = {
            "listeners": {"default": {"tls": "none", "to": "echo"}},
            "clusters": {"echo": {"endpoints": [f"127.0.0.1:{port}"]}},
        }
        everything = {"all.yaml": {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}}
        proxy = stack.enter_context(Proxy(directory, configuration, policies=everything))
        spec = {
            "outdir": str(out),
            "servers": [
                {"agent": "direct", "url": f"ws://127.0.0.1:{port}"},
                {"agent": "proxied", "url": f"ws://127.0.0.1:{proxy.ports['default']}"},
            ],
            "cases": options.cases,
            "exclude-cases": list(SLOW) if options.quick else [],
            "exclude-agent-cases": {},
        }
        (out / "spec.json").write_text(json.dumps(spec))
        with (out / "client.log").open("wb") as log:
            subprocess.run([*command, "-m", "fuzzingclient", "-s", str(out / "spec.json")], cwd=out, stdout=log, stderr=log, check=True)
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
