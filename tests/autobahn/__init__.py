"""The Autobahn test suite against an echo server, directly and through the proxy: the verdicts must be the same."""
