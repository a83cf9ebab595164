"""How a sweep is carried out: what to start, where, what became of it, whether it is tried again.

``python -m expc_runtime.sweep`` prints the path of ``sweep.bash``, which a generated sweep.sh
sources; that script owns the processes of a local sweep and runs this package for the rest.
`book` is the one place that writes what became of an attempt, for every back end. Standard library
only.
"""
