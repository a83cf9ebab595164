"""Where rows come from, and how they reach a module."""
