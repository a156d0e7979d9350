"""Reading files: whole ones, growing ones, and pipes."""
