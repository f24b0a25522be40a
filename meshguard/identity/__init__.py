"""SPIFFE IDs, X.509-SVID and JWT verification. Pure: certificates, bundles and `now` are arguments."""
