"""Query, verify and prove what the ledger holds."""

from __future__ import annotations

import argparse

from meshguard.cli import audit_integrity, audit_query, audit_replay

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard audit query --verdict deny --since 1h                      the newest denials (in ./ledger, or say --ledger or --config)
  meshguard audit query --path '/orders/**' --where 'outcome.status >= 500' --format csv
  meshguard audit tail -f --verdict deny
  meshguard audit stats --since 1d
  meshguard audit export --as ocsf --since 1d --output events.jsonl
  meshguard audit replay --policy new/ --since 7d                      what would change under another policy
  meshguard audit verify --ledger /var/lib/meshguard/ledger            derive everything anew, name what was changed
  meshguard audit verify --checkpoint kept.txt --key node.pub          against a checkpoint that was kept elsewhere
  meshguard audit prove 5f1c2a9e-2a > proof.json                       a proof of one decision
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
    audit_query.add(inner)
    audit_replay.add(inner)
    audit_integrity.add(inner)
