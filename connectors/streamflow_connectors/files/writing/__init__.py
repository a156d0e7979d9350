"""Writing files: one, or several that are rotated, parted or shown only when whole."""
