"""From programs to code on disk: C++, made in a process of its own."""
