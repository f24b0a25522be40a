"""The command line as a user meets it: subprocesses where the process matters, calls where it does not."""

from __future__ import annotations

import argparse
import stat
import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import pytest

from meshguard import __version__
from meshguard.cli.main import COMMANDS, _parser, main


def run(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "meshguard", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_version_is_printed_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"meshguard {__version__}\n" * 2
    assert main(["version", "--verbose"]) == 0
    assert "pydantic 2." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["nonsense"], ["check"], ["check", "--format", "xml", "f"], ["schema", "other"]])
def test_wrong_usage_is_exit_code_2_with_a_word_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: meshguard" in err


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, line in COMMANDS:
        assert f"    {name} " in out
        assert line[:30] in " ".join(out.split())


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS if util.find_spec(f"meshguard.cli.{name}") and name != "version"])
def test_each_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"  meshguard {name}" in out


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS if util.find_spec(f"meshguard.cli.{name}")])
def test_each_command_registers_a_function_to_run(name: str) -> None:
    assert callable(import_module(f"meshguard.cli.{name}").register)


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_each_command_line_leads_to_a_function(name: str) -> None:
    """A subcommand that sets anything but `run` would print the help of the whole program, whatever it is asked to do."""
    parser = _parser(name)
    pending = [_commands(parser)[name]]
    while pending:
        found = pending.pop()
        below = _commands(found)
        pending += below.values()
        assert below or callable(found.get_default("run")), found.prog


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: below
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, below in action.choices.items()
    }


def test_only_the_called_command_is_imported() -> None:
    code = (
        "import sys; from meshguard.cli.main import main; main(['version']); "
        "print([n for n in ('pydantic', 'asyncio', 'meshguard.cli.check', 'meshguard.control', 'grpc') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[1] == "[]"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m meshguard schema | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["test nowhere", "reach nowhere", "diff nowhere nowhere", "serve --config nowhere", "check nowhere", "schema nowhere",
     "audit verify --ledger nowhere", "audit query --ledger nowhere", "explain 1-1 --ledger nowhere", "keys list nowhere/k.json",
     "keys rotate nowhere/k.json", "bundle build nowhere --name a --version 1 --out b.json", "bundle verify nowhere --key nowhere",
     "fields report --config nowhere", "identity show nowhere", "top --once --config nowhere"],
)  # fmt: skip
def test_what_cannot_be_read_is_exit_code_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 is the answer no: a pipeline must be able to tell a loosened policy or a ledger that was changed from a mistyped name."""
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert ".lock" not in err


def test_a_keyset_gets_its_directory(tmp_path: Path) -> None:
    assert main(["keys", "create", str(tmp_path / "keys" / "orders-pii.json")]) == 0
    assert main(["keys", "list", str(tmp_path / "keys" / "orders-pii.json")]) == 0
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_the_module_runs_and_its_exit_code_is_the_commands() -> None:
    assert run("version").returncode == 0
    done = run("check", "/nonexistent/file.yaml")
    assert done.returncode == 2
    assert "/nonexistent/file.yaml: (document): expected a readable file (No such file or directory)" in done.stderr
    assert "Traceback" not in done.stderr
