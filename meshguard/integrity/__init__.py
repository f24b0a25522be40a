"""Signed statements: envelopes, signers, bundles of policy. Knows no I/O, no clock and no configuration."""
