"""Where documents, identities and keys of others come from: files, the SPIFFE Workload API, a development CA, JWKS URLs."""
