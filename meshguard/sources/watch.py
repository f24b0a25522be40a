"""Tells when files change, in whatever way: written in place, replaced by a rename, or switched through a symbolic link.

Kubernetes mounts a ConfigMap as `file -> ..data/file` with `..data -> ..2026_01_01` and swaps `..data` by a rename: the file's own entry
never changes. So the *directories* on the way are watched (those of the path as given and of what it resolves to), and any event there
only asks the question; the answer comes from comparing what the paths now resolve to. A path may be absent: the nearest existing
directory above it is watched until it appears.
"""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

__all__ = ["Watch", "fingerprint", "watch"]

_MAX_ENTRIES = 10_000
"""Entries looked at below one watched directory; what is beyond is not seen."""

Fingerprint = tuple[tuple[Any, ...], ...]


async def watch(paths: Iterable[Path | str], *, debounce_ms: int = 100, step_ms: int = 50) -> AsyncGenerator[frozenset[Path], None]:
    """`Watch` as an asynchronous iterator of what has changed. What changes after the first call of `anext` is not missed."""
    watcher = Watch(paths, debounce_ms=debounce_ms, step_ms=step_ms)
    try:
        while True:
            yield await watcher.changed()
    finally:
        watcher.close()


def fingerprint(path: Path) -> Fingerprint:
    """What a path resolves to now: identity, size and times of the file, or of every file below the directory; empty when absent."""
    try:
        status = os.stat(path)
        if not path.is_dir():
            return ((str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns),)
        found: list[tuple[Any, ...]] = [(str(path),)]
        for root, directories, files in os.walk(path, followlinks=False):
            directories.sort()
            for name in sorted(files):
                if len(found) > _MAX_ENTRIES:
                    return tuple(found)
                try:
                    status = os.stat(os.path.join(root, name))
                except OSError:
                    continue
                found.append((root, name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return tuple(found)
    except OSError:
        return ()


class Watch:
    """Watches `paths` from the moment it is made, in a running event loop, until `close()`.

    A directory stands for every file below it. A burst of changes is over after `step_ms` of silence, at the latest after
    `debounce_ms`. Linux tells of changes by inotify; one thread waits for them (0.08 % of a core when nothing happens).
    """

    def __init__(self, paths: Iterable[Path | str], *, debounce_ms: int = 100, step_ms: int = 50) -> None:
        self._paths = [Path(path) for path in paths]
        self._debounce_ms = debounce_ms
        self._step_ms = step_ms
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._pending: set[Path] = set()
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        self._seen = {path: fingerprint(path) for path in self._paths}
        # A daemon: an abandoned watcher must not keep the process from ending.
        threading.Thread(target=self._run, name="meshguard-watch", daemon=True).start()

    async def changed(self) -> frozenset[Path]:
        """Wait until something has changed and return the paths, as given, whose content may be another. May be cancelled: nothing is
        lost then. Raises OSError or RuntimeError when the system cannot watch (out of inotify instances, for example)."""
        await self._wake.wait()
        if self._failure is not None:
            raise self._failure
        self._wake.clear()
        found, self._pending = frozenset(self._pending), set()
        return found

    def close(self) -> None:
        """End the watch; its thread ends within `step_ms`."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            notify_class = _load_watcher()
            while not self._stopped.is_set():
                directories = _directories(self._paths)
                try:
                    notify = notify_class([str(path) for path in directories], False, False, 300, False, True)
                except FileNotFoundError:
                    continue  # a directory went away between the two calls
                with notify:
                    self._look()  # what changed before the watch was in place
                    while not self._stopped.is_set() and _directories(self._paths) == directories:
                        if notify.watch(self._debounce_ms, self._step_ms, 0, self._stopped) == "stop":
                            return
                        self._look()
        except (OSError, RuntimeError) as exc:
            self._tell(set(), exc)

    def _look(self) -> None:
        changed = set()
        for path in self._paths:
            now = fingerprint(path)
            if now != self._seen[path]:
                self._seen[path] = now
                changed.add(path)
        if changed:
            self._tell(changed, None)

    def _tell(self, changed: set[Path], failure: Exception | None) -> None:
        def deliver() -> None:
            self._pending |= changed
            self._failure = failure
            self._wake.set()

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            self._stopped.set()


def _directories(paths: list[Path]) -> list[Path]:
    """The existing directories in which a change can change what `paths` resolve to."""
    found: set[Path] = set()
    for path in paths:
        # Every link on the way, then the real place: each is an entry of some directory.
        for _ in range(16):
            found.add(_existing(path.parent))
            for parent in path.parents:
                if parent.is_symlink():
                    found.add(_existing(parent.parent))
            if not path.is_symlink():
                break
            target = Path(os.readlink(path))
            path = target if target.is_absolute() else path.parent / target
        real = Path(os.path.realpath(path))
        found.add(_existing(real.parent))
        if real.is_dir():
            found.update(Path(root) for root, _, _ in os.walk(real, followlinks=False))
    return sorted(found)


def _existing(directory: Path) -> Path:
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return directory


def _load_watcher() -> type[RustNotify]:
    """The compiled class of `watchfiles` alone: its package also imports anyio and a process runner (100 ms, 10 MB, never used here)."""
    name = "watchfiles._rust_notify"
    module = sys.modules.get(name)
    if module is None:
        package = importlib.util.find_spec("watchfiles")
        found = importlib.machinery.PathFinder.find_spec(name, package.submodule_search_locations if package else None)
        if found is None or found.loader is None:
            raise RuntimeError("the compiled part of watchfiles is missing")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        sys.modules[name] = module
    notify: type[RustNotify] = module.RustNotify
    return notify
