"""Every stage of a sweep, built and run for one batch, with tensors that have shapes and no data.

``python -m expc_runtime.dry`` is asked by ``expc plan --check``: JSON in, JSON out (`answer`). Tensors
are torch's fake ones: the meta device, with the name of a real one, so that autocast, fused
optimizers and a user's own ``x.device`` work as they will. Nothing is read but headers of files.
"""

from expc_runtime.dry.ask import answer
from expc_runtime.dry.memory import Kept, Sizes

__all__ = ["Kept", "Sizes", "answer"]
