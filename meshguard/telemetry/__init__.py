"""What is told about requests: decision log, metrics, spans, logs. Off the path, bounded, never refuses a request, never shows a secret."""
