"""A steady load of small requests in threads, each strict about every byte of its answers; every one that fails is kept."""

from __future__ import annotations

import ssl
import threading
from collections import Counter

from tests.harness.client import RawClient, get


class Load:
    """`kept` clients keep their connection for as long as the proxy does, `fresh` ones open one for each request. A request fails when
    it gets no complete answer; on a kept connection also when it was sent after the answer before it, which promised to go on."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None = None, *, kept: int = 4, fresh: int = 2) -> None:
        self._address = address
        self._tls = tls
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index < kept,), daemon=True) for index in range(kept + fresh)]
        self._changed = threading.Condition()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)

    def more(self, count: int, deadline_s: float = 10.0) -> None:
        """Waits until so many further answers have come."""
        with self._changed:
            wanted = self.statuses.total() + count
            assert self._changed.wait_for(lambda: self.statuses.total() >= wanted, deadline_s), f"no {count} answers: {self.failures[-3:]}"

    def _run(self, keep: bool) -> None:
        client: RawClient | None = None
        request = get("/load") if keep else get("/load", fields=["Connection: close"])
        while not self._stop.is_set():
            try:
                if client is None:
                    client = RawClient(self._address, self._tls)
                answer = client.request(request)
            except Exception as exc:
                with self._changed:
                    self.failures.append(f"{'kept' if keep else 'fresh'}: {exc!r}")
                if client is not None:
                    client.close()
                client = None
                self._stop.wait(0.01)
                continue
            with self._changed:
                self.statuses[answer.status] += 1
                self._changed.notify_all()
            if not keep or answer.get("connection") == "close":
                client.close()
                client = None
        if client is not None:
            client.close()
