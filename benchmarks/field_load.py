"""Samples of the rows of field protection: documents through a proxy, and what the same octets cost without one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

from benchmarks import install, load
from benchmarks.candidates import Candidate
from benchmarks.documents import KINDS, NAMES, PREFIXES, body_of
from benchmarks.load import Sample

__all__ = ["INLINE", "measure"]

INLINE = ("orjson", "AES-GCM, 1 field", "AES-GCM, 10 fields")
"""What is measured without a proxy, in a process of its own on the core of the proxies."""

_SEALED = re.compile(rb'"eyJ[A-Za-z0-9_-]+\.\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"')

_PROGRAM = """
import secrets, sys, time
import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from benchmarks.documents import NAMES, body_of
what, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
body = body_of(size, len(NAMES))
cipher, header = AESGCM(secrets.token_bytes(32)), bytes(90)
values = [b'"%d"' % (10**15 + number) for number in range(10 if "10" in what else 1)]
def reserialise():
    orjson.dumps(orjson.loads(body))
def encrypt():
    nonces = secrets.token_bytes(12 * len(values))
    for place, value in enumerate(values):
        cipher.encrypt(nonces[12 * place : 12 * place + 12], value, header)
work = reserialise if what == "orjson" else encrypt
many = range(max(1, 2_000_000 // size))
count, cpu, end = 0, time.process_time(), time.monotonic() + seconds
while time.monotonic() < end:
    for _ in many:
        work()
    count += len(many)
print(count, time.process_time() - cpu)
"""


def measure(candidate: Candidate, kind: str, secs: float, warm: float = 0.3, **settings: Any) -> Sample:
    """`size` of the document; `count`: how many of its fields are protected; or `inline`: one of INLINE."""
    size, count = int(settings["size"]), settings.get("count", 0)
    if "inline" in settings:
        return _inline(candidate, str(settings["inline"]), size, secs)
    document = KINDS.index((size, max(1, count)))
    query = f"42?expand=items&file={document}"
    status, body = candidate.fetch(kind, PREFIXES[count] + query)
    plain = body_of(*KINDS[document])
    wrong = _wrong(plain, status, body, count)
    if wrong:
        return {"error": wrong}
    return load.closed_loop(
        candidate, kind, secs, warm, conns=settings["conns"], path=PREFIXES[count], paths=1, file=document, body=len(body), any=1
    )


def _wrong(plain: bytes, status: int | str, body: bytes, count: int) -> str:
    """Why this is not the document with so many fields sealed and nothing else changed; empty when it is."""
    if status != 200:
        return f"the document gave {status}"
    values: dict[str, str] = json.loads(plain)["customer"]
    expected, found = plain, _SEALED.findall(body)
    if len(found) != count:
        return f"the document has {len(found)} sealed values, not {count}"
    for name, sealed in zip(NAMES[:count], found, strict=True):
        expected = expected.replace(b'"%b":"%b"' % (name.encode(), values[name].encode()), b'"%b":%b' % (name.encode(), sealed))
    return "" if body == expected else f"the document is not the one with {count} fields sealed"


def _inline(candidate: Candidate, what: str, size: int, secs: float) -> Sample:

    command = ["taskset", "-c", str(candidate.bench.options.proxy_core), sys.executable, "-c", _PROGRAM, what, str(size), str(secs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=secs + 60, check=False, cwd=install.ROOT)
    try:
        count, cpu = done.stdout.split()
    except ValueError:
        return {"error": f"{what}: {done.stderr[-200:]}"}
    return {"n": int(count), "cpu_us": float(cpu) * 1e6 / int(count)}
