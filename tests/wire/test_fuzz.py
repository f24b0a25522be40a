"""The fuzz targets run over their corpus with every test run: what was found once stays found. And the loop itself."""

from __future__ import annotations

from pathlib import Path
from random import Random
from time import monotonic

import pytest

from fuzz import __main__ as fuzz
from fuzz.mutate import mutate, shrink
from fuzz.targets import TARGETS, Target

CORPUS = sorted(fuzz.CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_corpus(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_corpus_and_says_its_invariant(name: str) -> None:
    assert any(path.parent.name == name for path in CORPUS)
    first = (TARGETS[name].run.__doc__ or "").partition("\n")[0]
    assert first.endswith("."), "the first docstring line is the invariant"


@pytest.mark.parametrize("name", TARGETS)
def test_some_mutations(name: str) -> None:
    loop = fuzz.Loop(name, TARGETS[name], Random(f"tests {name}"))
    for _ in range(60):
        loop.feed(mutate(loop.random, loop.random.choice(loop.inputs), loop.inputs, loop.target.words))


def test_the_loop_finds_what_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guided by signatures: three octets one after the other, each of which alone changes nothing but the signature."""
    monkeypatch.setattr(fuzz, "FINDINGS", tmp_path)

    def target(data: bytes) -> int:
        """Never holds the three letters in order."""
        progress = 0
        for char in data:
            progress += progress < 3 and char == b"<%>"[progress]
        assert progress < 3
        return progress

    loop = fuzz.Loop("demo", Target(target, (b"<", b"%", b">", b"x")), Random(1))
    with pytest.raises(AssertionError):
        loop.turn(monotonic() + 30)
    (found,) = tmp_path.iterdir()
    assert found.read_bytes() == b"<%>"
    assert "invariant broken" in capsys.readouterr().err


def test_shrinking_keeps_what_breaks() -> None:
    assert shrink(b"aaaaXbbbbbbbbYccc", lambda data: b"X" in data and b"Y" in data) == b"XY"


def test_a_run_can_be_repeated() -> None:
    first, second = (
        [mutate(random, b"GET / HTTP/1.1", [b"abc"], [b"\r\n"]) for _ in range(50)] for random in (Random("seed"), Random("seed"))
    )
    assert first == second
