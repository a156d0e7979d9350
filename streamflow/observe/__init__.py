"""What a person sees of a run: the live line, the report, charts."""
