"""The watcher sees a change however it is made, and is quiet otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from meshguard.sources.watch import fingerprint, watch


class Seen:
    """Collects what a watcher tells; `until` waits for a path with a deadline."""

    def __init__(self) -> None:
        self.bursts: list[frozenset[Path]] = []
        self._news = asyncio.Event()

    async def run(self, *paths: Path) -> None:
        async for changed in watch(paths, debounce_ms=40, step_ms=10):
            self.bursts.append(changed)
            self._news.set()

    async def until(self, path: Path) -> None:
        async with asyncio.timeout(10):
            while not any(path in burst for burst in self.bursts):
                self._news.clear()
                await self._news.wait()
        self.bursts.clear()


@contextlib.asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Seen]:
    seen = Seen()
    task = asyncio.ensure_future(seen.run(*paths))
    await asyncio.sleep(0)
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(".new")
    temporary.write_text(text)
    temporary.replace(path)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text("other"),
    "appended": append,
    "renamed over": lambda path: replace(path, "text"),
    "removed": lambda path: path.unlink(),
    "same length": lambda path: path.write_text("TEXT"),
}


@pytest.mark.parametrize("change", list(CHANGES))
async def test_a_file(change: str, tmp_path: Path) -> None:
    path, other = tmp_path / "svid.pem", tmp_path / "other.pem"
    path.write_text("text")
    other.write_text("text")
    async with watching(path, other) as seen:
        CHANGES[change](path)
        await seen.until(path)
        assert not any(other in burst for burst in seen.bursts)


async def test_a_file_that_comes_later_in_a_directory_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "svid.pem"
    async with watching(path) as seen:
        path.parent.parent.mkdir()
        await asyncio.sleep(0.1)
        path.parent.mkdir()
        await asyncio.sleep(0.1)
        path.write_text("x")
        await seen.until(path)
        path.write_text("xy")
        await seen.until(path)


async def test_a_directory_goes_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "svid.pem"
    path.write_text("x")
    async with watching(path) as seen:
        path.unlink()
        folder.rmdir()
        await seen.until(path)
        folder.mkdir()
        await asyncio.sleep(0.1)
        path.write_text("y")
        await seen.until(path)


async def test_kubernetes_symbolic_link_swap(tmp_path: Path) -> None:
    """file -> ..data/file, ..data -> ..1; then ..data is swapped by a rename and the old directory is removed."""
    first = tmp_path / "..2026_01"
    first.mkdir()
    for name in ("tls.crt", "tls.key"):
        (first / name).write_text("one")
    (tmp_path / "..data").symlink_to(first.name)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    async with watching(certificate, key) as seen:
        for version in ("..2026_02", "..2026_03"):
            second = tmp_path / version
            second.mkdir()
            for name in ("tls.crt", "tls.key"):
                (second / name).write_text(version)
            (tmp_path / "..data_tmp").symlink_to(version)
            os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
            await seen.until(certificate)
            assert key.read_text() == version


async def test_a_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    """As certbot lays it out: live/x.pem -> ../archive/x1.pem; the link moves, then the target is rewritten."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "live").mkdir()
    for number in (1, 2):
        (tmp_path / "archive" / f"x{number}.pem").write_text(f"{number}")
    path = tmp_path / "live" / "x.pem"
    path.symlink_to("../archive/x1.pem")
    async with watching(path) as seen:
        (tmp_path / "live" / "new").symlink_to("../archive/x2.pem")
        os.replace(tmp_path / "live" / "new", path)
        await seen.until(path)
        await asyncio.sleep(0.1)
        (tmp_path / "archive" / "x2.pem").write_text("2 again")
        await seen.until(path)


async def test_a_directory_and_what_is_below(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    (folder / "sub").mkdir(parents=True)
    async with watching(folder) as seen:
        (folder / "a.yaml").write_text("a")
        await seen.until(folder)
        (folder / "sub" / "b.yaml").write_text("b")
        await seen.until(folder)
        (folder / "new").mkdir()
        await asyncio.sleep(0.1)
        (folder / "new" / "c.yaml").write_text("c")
        await seen.until(folder)
        (folder / "a.yaml").unlink()
        await seen.until(folder)


async def test_a_burst_is_told_once_or_twice(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    async with watching(path) as seen:
        for index in range(50):
            replace(path, str(index))
        await asyncio.sleep(0.5)
        assert 1 <= len(seen.bursts) <= 3


async def test_neighbours_are_not_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    async with watching(path) as seen:
        await asyncio.sleep(0.1)
        (tmp_path / "y").write_text("y")
        os.utime(tmp_path)
        await asyncio.sleep(0.3)
        assert seen.bursts == []


async def test_its_thread_ends_with_it(tmp_path: Path) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "meshguard-watch"}

    before = threads()
    async with watching(tmp_path / "x"):
        (mine,) = threads() - before
    await asyncio.to_thread(mine.join, 5)
    assert not mine.is_alive()


def test_an_abandoned_watcher_lets_the_process_end(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from meshguard.sources.watch import watch\n"
        "async def main():\n"
        "    asyncio.ensure_future(anext(watch([sys.argv[1]])))\n"
        "    await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], timeout=15, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_only_the_compiled_part_is_imported() -> None:
    code = (
        "import sys\n"
        "from meshguard.sources import watch\n"
        "watch._load_watcher()\n"
        "sys.exit('anyio' in sys.modules or 'watchfiles' in sys.modules or 'grpc' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=15, check=False).returncode == 0


def test_fingerprint(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "absent") == ()
    path = tmp_path / "x"
    path.write_text("x")
    assert fingerprint(path) == fingerprint(path) != ()
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert fingerprint(link) == ()
