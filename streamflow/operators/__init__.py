"""What happens to records between source and sink, one processor for each kind of operator."""
