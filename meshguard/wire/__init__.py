"""Bytes to messages and back, sans I/O: HTTP/1.1, canonical targets, header fields, trace context, XFCC. Pure: no sockets, clocks or policy."""
