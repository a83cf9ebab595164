"""One attempt at training a stage, in the order of the files: prepared, looped over, concluded.

`state` is what the others work on; `expc_runtime.fit` calls them.
"""
