"""The ledger's rules without a disk: entries, records, Merkle tree, proofs, signed checkpoints, verification. Knows no file, no clock."""
