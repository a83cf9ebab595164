"""From a plan to files: print, format, map back to the spec, write what changed."""
