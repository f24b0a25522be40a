"""What runs the house: settings, snapshots, reload, the admin API, the life of the process. Knows nothing of bytes on the wire."""
