"""Key providers: where keysets come from. Never logs or shows key material."""
