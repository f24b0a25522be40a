"""Field-level protection: selectors, envelopes (JWE), keysets, transforms by payload format. Pure: keys, nonces and `now` are arguments."""
