"""The ledger on disk: segments, their writer, recovery, reading, the index, retention. Knows no HTTP and no policy."""
