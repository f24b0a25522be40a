"""The owner of a cluster's background work: the one place below `net.cluster` that makes tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

__all__ = ["Tasks"]

_log = logging.getLogger(__name__)


class Tasks:
    """A task group whose members may fail without taking the others down: a failed one is logged, all end with `close`.

    `asyncio.TaskGroup` needs an enclosing coroutine and cancels the siblings of a failed task; a dial that raises must not end
    the health checks.
    """

    __slots__ = ("_closed", "_name", "_tasks")

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Run `work` until it ends or the owner closes; raises RuntimeError when the owner is closed."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self._name} is closed")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s ended with %s", task.get_name(), type(error).__name__, exc_info=error)

    async def close(self) -> None:
        """Cancel all and wait for them; a cancellation of the caller goes through."""
        self._closed = True
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks.difference_update(tasks)
