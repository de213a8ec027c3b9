"""A network's labels for pictures and videos."""
