"""What the process-level tests stand on: the process runner, raw clients, a recording upstream, a PKI, a grammar of requests.

Knows only the documented surface of meshguard (command line, configuration document, sockets, admin API); imports nothing of
the package under test.
"""
