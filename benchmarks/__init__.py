"""Measures meshguard against other proxies on one machine.

Knows how to start the candidates, to load them alike and to compare what they cost. Must not know how meshguard works inside:
it sees a command line, a configuration document and sockets.
"""
