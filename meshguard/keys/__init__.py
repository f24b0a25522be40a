"""Key providers: where keysets come from, and how long their keys may be used.

Knows files and key services; knows nothing of rules, bodies and requests. Never logs or shows key material.
"""
