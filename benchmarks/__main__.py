"""`python -m benchmarks`: runs the rows, prints the tables, writes benchmarks/out/latest.json. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence

from benchmarks import compare, install, report
from benchmarks.bench import Bench, Options
from benchmarks.candidates import Candidate
from benchmarks.load import Sample
from benchmarks.pace import Pace
from benchmarks.peers import DEFAULT, PEERS
from benchmarks.rows import ROWS, Contestant, Row, contestants, play
from benchmarks.subject import SUBJECTS

__all__ = ["Run", "main", "parse"]

RESULTS = install.ROOT / "benchmarks" / "RESULTS.md"
QUICK_ROWS = "h1-mtls,handshake,latency,memory,start-up"


class Run:
    """One run over the rows. Candidates start when a row needs them and stop when no later row does."""

    def __init__(self, bench: Bench, rows: list[Row]) -> None:
        self.bench = bench
        self.rows = rows
        self.results: dict[str, dict[str, list[Sample]]] = {}
        self.out: dict[str, str] = {}  # candidate to why it does not take part
        self.pace = Pace(bench.options.proxy_core)
        self._candidates: dict[str, Candidate] = {}

    def go(self) -> None:
        for row in self.rows:
            self.pace.take()
            self._row(row)
            self.pace.take()
            if row.name in self.results:
                print(f"\n{row.name} ({row.unit})")
                print("\n".join("  " + line for line in report.row_lines(row, self.results[row.name])), flush=True)

    def stop(self) -> None:
        for candidate in self._candidates.values():
            candidate.stop()

    def _row(self, row: Row) -> None:
        options = self.bench.options
        wanted = contestants(row, options.ours, options.peers)
        for idle in self._candidates.values():  # an idle process wakes up now and then, on the core that is measured
            if idle.running and idle.name not in {each.candidate for each in wanted}:
                idle.stop()
        ready = [(each, self._ready(each, row)) for each in wanted]
        field = [(each, candidate) for each, candidate in ready if candidate is not None]
        if not any(each.candidate.startswith(options.ours) for each, _ in field):
            print(f"\n{row.name}: left out, {options.ours} does not take part")
            return
        self.results[row.name] = play(row, field, options.rounds, options.seconds, options.warmup_s)

    def _ready(self, contestant: Contestant, row: Row) -> Candidate | None:
        """The running candidate, or None when it cannot take part in this row."""
        name = contestant.candidate
        candidate = self._candidates.setdefault(name, Candidate(self.bench, name, (PEERS | SUBJECTS)[name]))
        if name in self.out:
            return None
        if not candidate.running and not self._started(candidate):
            return None
        if candidate.port(row.kind) is None or (row.kind in ("h2-mtls", "grpc") and not candidate.speaks_h2()):
            return None
        return candidate

    def _started(self, candidate: Candidate) -> bool:
        known = candidate.plan is not None
        try:
            candidate.start()
        except (RuntimeError, install.Absent) as error:
            self.out[candidate.name] = str(error)
        else:
            if known:
                return True
            wrong = candidate.faults()
            if not wrong:
                print(f"{candidate.name}: ready after {candidate.start_s:.2f} s", flush=True)
                return True
            self.out[candidate.name] = "; ".join(wrong)
            candidate.stop()
        print(f"{candidate.name}: takes no part: {self.out[candidate.name]}", flush=True)
        return False


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures meshguard against other proxies, interleaved.")
    parser.add_argument("--rows", help="some of " + ", ".join(names))
    parser.add_argument("--peers", default=",".join(DEFAULT), help="some of " + ", ".join(PEERS) + " (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds of each row (default 5)")
    parser.add_argument("--seconds", type=float, help="seconds of each measurement (default 3)")
    parser.add_argument("--rules", type=int, default=1000, help="rules of the policy (default %(default)s)")
    parser.add_argument("--reloads", type=int, default=1000, help="of the row reloads, in all its rounds (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"two minutes: {QUICK_ROWS} against Envoy and nginx, 3 short rounds")
    parser.add_argument(
        "--ours", default="meshguard", choices=("meshguard", *PEERS), help="another proxy in our place, to check the harness"
    )
    parser.add_argument("--write-results", action="store_true", help="write benchmarks/RESULTS.md, to be committed")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rows = given.rows or QUICK_ROWS
        given.rounds, given.seconds = given.rounds or 3, given.seconds or 1.0
        if given.peers == ",".join(DEFAULT):
            given.peers = "envoy,nginx"
    given.rows = given.rows.split(",") if given.rows else names
    given.peers = [name for name in given.peers.split(",") if name]
    given.rounds, given.seconds = given.rounds or 5, given.seconds or 3.0
    unknown = [name for name in given.rows if name not in names] + [name for name in given.peers if name not in PEERS]
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything measured is valid and no bound is missed; 1: something fell short or is invalid; 2: it could not run."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the clean-up runs
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    options = Options(given.rows, given.peers, given.ours, given.rounds, given.seconds, rules=given.rules, reloads=given.reloads)
    began = time.monotonic()
    try:
        with contextlib.ExitStack() as cleanup:
            bench = cleanup.enter_context(Bench(options))
            run = Run(bench, [row for row in ROWS if row.name in given.rows])
            cleanup.callback(run.stop)
            print(f"{report.machine()}; {report.PYTHON}, {report.OPENSSL}", flush=True)
            if (os.cpu_count() or 1) < 2:
                print("one core only: load and proxy share it, so latencies mean little")
            run.go()
    except install.Absent as error:
        print(error, file=sys.stderr)
        return 2
    return _finish(run, given, time.monotonic() - began)


def _finish(run: Run, given: argparse.Namespace, took_s: float) -> int:
    comparisons = compare.compare(run.results, report.PYTHON, report.OPENSSL, given.ours)
    if given.ours == "meshguard":  # what another proxy gave in our place is a check of the harness, not a result
        report.write_json(install.OUT / "latest.json", comparisons)
    print("\n" + "\n".join(report.aligned(report.table(comparisons))))
    short = [each.name for each in comparisons if each.verdict == "short"]
    behind = [each.name for each in comparisons if each.verdict == "first"]
    invalid = [f"{row}/{name}" for row, result in run.results.items() for name, samples in result.items() if compare.faults(samples)]
    print(f"\n{took_s:.0f} s; {run.pace}")
    for title, names in (("short of first", short), ("short of the aim", behind), ("invalid", invalid), ("absent", list(run.out))):
        if names:
            print(f"{title}: {', '.join(names)}")
    if given.write_results:
        how = f"{given.rounds} interleaved rounds of {given.seconds:g} s, {given.rules} rules; {run.pace}"
        RESULTS.write_text(report.results_document(comparisons, run.results, report.versions(given.peers), how))
        print(f"written: {RESULTS.relative_to(install.ROOT)}")
    return 1 if short or invalid or not run.results else 0


if __name__ == "__main__":
    sys.exit(main())
