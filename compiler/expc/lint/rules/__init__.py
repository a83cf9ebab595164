"""Every rule, by family. Importing this package registers them."""

import expc.lint.rules.data
import expc.lint.rules.dry
import expc.lint.rules.gates
import expc.lint.rules.handoff
import expc.lint.rules.losses
import expc.lint.rules.numerics
import expc.lint.rules.output
import expc.lint.rules.runs
import expc.lint.rules.shape
import expc.lint.rules.splits
import expc.lint.rules.stages
import expc.lint.rules.sweeps
import expc.lint.rules.text
import expc.lint.rules.worlds  # noqa: F401
