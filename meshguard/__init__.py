"""meshguard: a security proxy for service meshes.

The package is a house of floors (ARCHITECTURE.md): imports point down only, and nothing below the line
(wire, identity, policy, fields, model) does I/O, reads a clock or draws random bytes.
"""

__version__ = "0.1.0"
