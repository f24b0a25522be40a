"""What leaves the machine: checkpoints to a witness, with two signatures of our own, and entries to a NATS stream, by the real process."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshguard.ledger import post_quantum
from meshguard.ledger.notes import NoteSigner, NoteVerifier, open_note
from tests.e2e.test_ledger import Town
from tests.harness.jetstream import NatsServer, nats_server
from tests.harness.proxy import eventually
from tests.harness.witness import WitnessServer


def test_a_witness_and_a_second_signature(tmp_path: Path) -> None:
    try:
        post_quantum.new_key()
    except post_quantum.NoPostQuantum as exc:
        pytest.skip(str(exc))
    town = Town(tmp_path)
    keys = []
    for name, more in (("node.key", ()), ("quantum.key", ("--post-quantum",))):
        made = town.audit("key", str(tmp_path / name), "--name", "shop.example/node-7", *more)
        assert made.returncode == 0, made.stderr
        assert town.audit("key", str(tmp_path / name), "--name", "shop.example/node-7", "--show").stdout == made.stdout
        keys.append(NoteVerifier.parse(made.stdout))
    witness = WitnessServer(NoteSigner("witness.example/w1", Ed25519PrivateKey.generate(), cosigner=True), keys)
    town.proxy.config["ledger"]["checkpoints"] = {
        "key": "node.key",
        "post_quantum_key": "quantum.key",
        "name": "shop.example/node-7",
        "interval_s": 0.05,
        "witness_urls": [witness.url],
        "witnesses": [witness.signer.verifier.render()],
    }
    town.proxy.write_config()
    newest = tmp_path / "ledger" / "shard-0" / "checkpoint"

    def cosigned(size: int) -> bool:
        if not newest.exists():
            return False
        text = newest.read_text()
        return witness.signer.verifier.accepts(open_note(text, keys, every=True)) is not None and int(text.split("\n")[1]) >= size

    try:
        with town.proxy:
            for number in range(5):
                assert town.ask(f"/open/{number}").status == 200
                eventually(lambda: cosigned(len(town.raw_entries())), "a cosigned checkpoint", 10)
        assert set(witness.requests) == {200}
        (tmp_path / "kept.txt").write_text(newest.read_text())
        place = ("--ledger", str(tmp_path / "ledger"))
        good = town.audit("verify", *place, "--all-keys", "--checkpoint", str(tmp_path / "kept.txt"))
        assert good.returncode == 0, good.stdout + good.stderr
        lone = tmp_path / "ledger" / "shard-0" / "checkpoints"
        text = lone.read_text()
        cut = "".join(line for line in text.splitlines(keepends=True) if len(line) < 3000)  # without the long signatures
        lone.write_text(cut)
        assert town.audit("verify", *place).returncode == 0
        assert "not every key" in town.audit("verify", *place, "--all-keys").stdout
    finally:
        witness.stop()
        town.mesh.close()


@pytest.mark.skipif(importlib.util.find_spec("nats") is None or nats_server() is None, reason="nats-py or the NATS server is not installed")
def test_entries_come_to_a_stream_and_go_on_after_an_outage(tmp_path: Path) -> None:
    import nats

    server = NatsServer(tmp_path / "nats").start()
    town = Town(tmp_path, checkpoints={"interval_s": 0.05}, ship={"nats": {"servers": [server.url]}})

    async def streamed() -> list[bytes]:
        client = await nats.connect(server.url)
        try:
            stream = client.jetstream()
            state = (await stream.stream_info("MESHGUARD_LEDGER")).state
            messages = [await stream.get_msg("MESHGUARD_LEDGER", number) for number in range(1, state.last_seq + 1)]
            return [line for message in messages if not message.subject.endswith(".checkpoint") for line in message.data.split(b"\n")]
        except nats.js.errors.NotFoundError:
            return []
        finally:
            await client.close()

    def arrived() -> bool:
        return asyncio.run(streamed()) == town.raw_entries()

    try:
        with town.proxy:
            for number in range(10):
                assert town.ask(f"/open/{number}").status == 200
            eventually(arrived, "the entries in the stream", 15)
            server.stop()
            for number in range(10, 15):
                assert town.ask(f"/open/{number}").status == 200  # nobody waits for it
            town.proxy.stderr.wait(lambda line: "the ledger could not be shipped" in line, "the outage", 20)
            server.start()
            eventually(arrived, "what came meanwhile", 20)
        town.proxy.stop()
        with town.proxy.start():
            eventually(arrived, "the entries of the second run", 15)
    finally:
        town.proxy.stop()
        server.stop()
        town.mesh.close()
