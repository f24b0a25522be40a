"""Values that every floor shares: errors and reasons, messages, principals, verdicts.

Knows nothing of configuration, sockets, clocks or the other packages.
"""
