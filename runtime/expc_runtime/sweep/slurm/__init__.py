"""A sweep on Slurm: a job array for each stage, and a last job that writes what came of all.

``python -m expc_runtime.sweep.slurm`` prints the path of ``cluster.bash``, which a generated
slurm.sh sources. Every task of an array is one stage instance, carried out by the same `Book` as
in a local sweep. Standard library only.
"""
