"""Query, verify and prove what the ledger holds."""

from __future__ import annotations

import argparse

from meshguard.cli import audit_integrity

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard audit verify /var/lib/meshguard/ledger                     derive everything anew, name what was changed
  meshguard audit verify DIR --checkpoint kept.txt --key node.pub      against a checkpoint that was kept elsewhere
  meshguard audit prove DIR 5f1c2a9e-2a > proof.json                   a proof of one decision
  meshguard audit verify-proof proof.json --key node.pub               which anybody checks without the ledger
  meshguard audit key /etc/meshguard/checkpoint.key                    make the key that signs checkpoints
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "audit",
        help="query, verify and prove the ledger",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    audit_integrity.add(inner)
