"""From code on disk to stages that run outside the interpreter."""
