"""Jinja templates of generated files; they loop and print, the compiler decides."""
