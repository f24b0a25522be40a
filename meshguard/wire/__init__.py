"""Bytes to messages and back, sans I/O: HTTP/1.1, canonical targets, header fields, trace context, XFCC.

Pure: no sockets, no clocks, no policy. Two engines (`http1`, `reference`) stand behind one interface and share `semantics`.
"""
