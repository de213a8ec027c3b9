"""What a network costs, computed and not measured: operations, bytes, and the time they need."""
