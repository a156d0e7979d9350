"""Lines over TCP, and differences."""
