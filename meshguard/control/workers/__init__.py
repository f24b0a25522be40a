"""Many processes behind one port: the supervisor, the template that workers are forked from, the workers, and what they say to each other.

What it must not know: requests. The supervisor loads no policy, no TLS and no wire code; it carries messages and sockets.
"""
