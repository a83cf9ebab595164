"""Findings as text for people, as JSON lines for programs, as annotations for GitHub."""
