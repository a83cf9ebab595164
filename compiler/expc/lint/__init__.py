"""Find what a spec would do wrong, before an hour of GPU time is spent on it."""
