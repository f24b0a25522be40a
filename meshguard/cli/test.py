"""`meshguard test`: run the tests that stand in policy documents.

Exit status: 0 all passed, 1 a test failed, there is none, or a document has problems, 2 wrong use or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.policy.bodies import Body, Messages, Reading
    from meshguard.policy.compiled import CompiledPolicy
    from meshguard.policy.documents import PolicyDocument, TestRequestDocument
    from meshguard.policy.testing import TestResult, TestRun

__all__ = ["register", "run_files"]

_TESTED_BYTES = 1 << 20
_EXAMPLES = """\
examples:
  meshguard test policies/
  meshguard test policies/orders.yaml policies/roles.yaml
  meshguard test policies/ --json | jq '.results[] | select(.passed | not)'
  meshguard test policies/ --junit report.xml --cover
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `test`; its `run` takes the parsed arguments and returns the exit status."""
    parser = subparsers.add_parser(
        "test",
        help="run the tests that stand in policies",
        description="Run the tests that stand in policy documents, by the code that decides live requests. The documents form one policy.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a policy document, or a directory of them")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write a JUnit report, for CI systems")
    parser.add_argument("--cover", action="store_true", help="fail when a rule decides no test")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from meshguard.policy.testing import run_tests

    policy, documents, files = _load(arguments.files)
    run = run_tests(policy, documents, files, _canonicalise, time.time(), _bodies)
    if arguments.junit is not None:
        _write_junit(run, arguments.junit)
    if arguments.json:
        print(json.dumps(_report(run, policy), indent=2))
    else:
        _print(run, policy)
    if not run.results:
        print("meshguard: there are no tests in these documents", file=sys.stderr)
        return 1
    return 1 if run.failed or (arguments.cover and run.uncovered) else 0


def run_files(paths: Sequence[Path]) -> TestRun:
    """Runs the tests of the documents in `paths`, as one policy. Raises DocumentError."""
    from meshguard.policy.testing import run_tests

    policy, documents, files = _load(paths)
    return run_tests(policy, documents, files, _canonicalise, time.time(), _bodies)


def _load(paths: Sequence[Path]) -> tuple[CompiledPolicy, list[PolicyDocument], list[str]]:
    from meshguard.control.policies import load_policy

    loaded = load_policy(paths)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return loaded.compiled, [entry.value for entry in loaded.documents], [entry.file for entry in loaded.documents]


def _canonicalise(target: str) -> tuple[str, tuple[str, ...]]:
    from meshguard.model.errors import RequestError
    from meshguard.model.reasons import AMBIGUOUS_TARGET
    from meshguard.wire.target import canonicalise

    if not target.isascii():
        raise RequestError(AMBIGUOUS_TARGET, "a target as it is sent has ASCII characters only: percent-encode it")
    canonical = canonicalise(target.encode("ascii"))
    return canonical.path, canonical.readings


def _bodies(path: str, request: TestRequestDocument) -> Callable[[Sequence[Reading]], Body]:
    """The reader of a tested request's body, that of the data plane."""
    from meshguard.pipeline.bodies import BodyReader, kind_of

    headers = {"content-type": ["application/json"], **request.headers}
    media_type = headers["content-type"][0] if headers["content-type"] else ""

    def read(readings: Sequence[Reading]) -> Body:
        octets = request.body.encode() if isinstance(request.body, str) else json.dumps(request.body, ensure_ascii=False).encode()
        messages = next((reading.messages for reading in readings if reading.messages is not None), None)
        if kind_of(media_type) == "protobuf" and messages is not None and isinstance(request.body, dict):
            octets = _message(messages, path, request.body, framed=media_type.startswith("application/grpc"))
        return BodyReader(path, lambda name: list(headers.get(name, ())), octets, _TESTED_BYTES).read(readings)

    return read


def _message(messages: Messages, path: str, values: dict[str, Any], *, framed: bool) -> bytes:
    """The values of a test as the message that a client would send."""
    try:
        message = messages.write(path, values)
    except LookupError:
        return b"\xff"  # no method with one message: no rule can read what is sent there
    except ValueError as exc:
        raise MeshguardError(f"the body of a test of {path}: expected {exc}") from None
    return b"\0" + len(message).to_bytes(4, "big") + message if framed else message


def _print(run: TestRun, policy: CompiledPolicy) -> None:
    for result in run.results:
        if not result.passed:
            print(f"FAIL  {result.file}: tests[{result.number}]  {result.name}")
            print(f"      {_mismatch(result)}")
            if result.detail:
                print(f"      {result.detail}")
    passed = len(run.results) - run.failed
    print(f"{passed} passed, {run.failed} failed; {len(run.covered)} of {policy.rule_count} rules decided a test")
    if run.uncovered:
        shown = ", ".join(run.uncovered[:10])
        print(f"without a test: {shown}{f' and {len(run.uncovered) - 10} more' if len(run.uncovered) > 10 else ''}")


def _mismatch(result: TestResult) -> str:
    expected = result.test.expect + (f" by {result.test.rule}" if result.test.rule else "")
    actual = result.verdict + (f" by {result.rule}" if result.rule else f" ({result.reason})" if result.reason else "")
    return f"expected {expected}, got {actual}"


def _report(run: TestRun, policy: CompiledPolicy) -> dict[str, Any]:
    return {
        "policy_digest": policy.digest,
        "passed": len(run.results) - run.failed,
        "failed": run.failed,
        "covered": list(run.covered),
        "uncovered": list(run.uncovered),
        "results": [
            {
                "file": result.file,
                "test": result.number,
                "as": result.test.caller,
                "call": result.test.call,
                "expect": result.test.expect,
                "expect_rule": result.test.rule,
                "passed": result.passed,
                "verdict": result.verdict,
                "rule": result.rule or None,
                "reason": result.reason or None,
                "detail": result.detail or None,
                "shadow": [{"rule": rule_id, "effect": effect} for rule_id, effect in result.shadow],
            }
            for result in run.results
        ],
    }


def _write_junit(run: TestRun, path: Path) -> None:
    suites = ElementTree.Element("testsuites", name="meshguard", tests=str(len(run.results)), failures=str(run.failed))
    for file in dict.fromkeys(result.file for result in run.results):
        results = [result for result in run.results if result.file == file]
        failed = sum(not result.passed for result in results)
        suite = ElementTree.SubElement(suites, "testsuite", name=file, tests=str(len(results)), failures=str(failed), errors="0")
        for result in results:
            case = ElementTree.SubElement(suite, "testcase", classname=file, name=f"tests[{result.number}] {result.name}")
            if not result.passed:
                failure = ElementTree.SubElement(case, "failure", message=_mismatch(result))
                failure.text = result.detail
    ElementTree.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)
