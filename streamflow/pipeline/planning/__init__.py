"""What stages cost, where to cut, and what to expect: measured on copies."""
