"""For tests of people who use expc: the `expc_snapshot` fixture."""
