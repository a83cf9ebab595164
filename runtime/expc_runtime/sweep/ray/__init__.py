"""A sweep on Ray: the clerk of a local sweep, whose stages run as tasks of a cluster.

``python -m expc_runtime.sweep.ray`` prints the path of ``cluster.bash``, which a generated ray.sh
sources. Only `driver` and `worker` import Ray, which is an extra: ``expc[ray]``.
"""
