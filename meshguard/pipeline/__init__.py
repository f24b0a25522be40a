"""The journey of a request: identify, decide, fields, forward, observe. Doors (HTTP/1.1, later others) lead here; it knows none of them."""
