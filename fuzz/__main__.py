"""`python -m fuzz`: runs the targets in turn for a time, stops at the first broken invariant with exit status 1."""

from __future__ import annotations

import argparse
import hashlib
import sys
import traceback
from pathlib import Path
from random import Random
from time import monotonic

from fuzz.mutate import mutate, shrink
from fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path(".fuzz")
_KEPT = 2000
_TURN_S = 2.0


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))] or [b""]


class Loop:
    """One target: its inputs by signature, its executions."""

    def __init__(self, name: str, target: Target, random: Random) -> None:
        self.name = name
        self.target = target
        self.random = random
        self.inputs: list[bytes] = []
        self.signatures: set[object] = set()
        self.executions = 0
        for data in seeds(name):
            self.feed(data)
        self.inputs = self.inputs or [b""]

    def feed(self, data: bytes) -> None:
        """Runs one input. Raises whatever the target raises."""
        self.executions += 1
        try:
            signature = self.target.run(data)
        except Exception:
            self.save(data)
            raise
        if signature not in self.signatures:
            self.signatures.add(signature)
            if len(self.inputs) < _KEPT:
                self.inputs.append(data)
            else:
                self.inputs[self.random.randrange(_KEPT)] = data

    def turn(self, end: float) -> None:
        while monotonic() < end:
            for _ in range(50):
                parent = self.random.choice(self.inputs)
                self.feed(mutate(self.random, parent, self.inputs, self.target.words))

    def save(self, data: bytes) -> None:
        def breaks(candidate: bytes) -> bool:
            try:
                self.target.run(candidate)
            except Exception:
                return True
            return False

        small = shrink(data, breaks)
        FINDINGS.mkdir(exist_ok=True)
        path = FINDINGS / f"{self.name}-{hashlib.sha256(small).hexdigest()[:12]}"
        path.write_bytes(small)
        print(f"{self.name}: invariant broken by {small!r}, saved as {path}", file=sys.stderr)


def with_coverage(name: str, seconds: int, seed: int) -> None:
    """atheris (libFuzzer) instead of signatures; it ends the process itself."""
    import atheris

    atheris.instrument_all()
    FINDINGS.mkdir(exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=1500", f"-artifact_prefix={FINDINGS}/{name}-"]
    folder = FINDINGS / f"corpus-{name}"
    folder.mkdir(exist_ok=True)
    atheris.Setup([sys.argv[0], *options, str(folder), str(CORPUS / name)], lambda data: TARGETS[name].run(data) and None)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=int, default=60, help="in all (default 60)")
    parser.add_argument("--target", choices=sorted(TARGETS), help="only this one")
    parser.add_argument("--seed", type=int, help="for a run that can be repeated; without it every run differs")
    parser.add_argument("--coverage", action="store_true", help="guided by coverage; needs atheris and --target")
    parser.add_argument("inputs", nargs="*", type=Path, help="run these saved inputs of --target once, and nothing else")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else Random().randrange(1 << 32)
    if (arguments.coverage or arguments.inputs) and not arguments.target:
        parser.error("--target is needed")
    if arguments.inputs:
        for path in arguments.inputs:
            print(path, TARGETS[arguments.target].run(path.read_bytes()))
        return 0
    if arguments.coverage:
        with_coverage(arguments.target, arguments.seconds, seed)
    print(f"seed {seed}")
    names = [arguments.target] if arguments.target else list(TARGETS)
    end = monotonic() + arguments.seconds
    status = 0
    loops: list[Loop] = []
    try:
        loops += [Loop(name, TARGETS[name], Random(f"{seed} {name}")) for name in names]
        while monotonic() < end:
            for loop in loops:
                loop.turn(min(end, monotonic() + _TURN_S))
    except KeyboardInterrupt:
        pass
    except Exception:
        traceback.print_exc()
        status = 1
    for loop in loops:
        print(f"{loop.name:10} {loop.executions:9} executions, {len(loop.signatures):5} signatures")
    return status


if __name__ == "__main__":
    sys.exit(main())
