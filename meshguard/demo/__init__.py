"""The guided tour: a sample service, identities, a policy and requests to try, all on this machine.

Knows the public surface only: the development CA, keysets, the command line of `serve`, documents, sockets. Must not reach into the
proxy: what the tour shows is what every user gets.
"""
