"""Metrics. Their code is `expc_runtime.metrics`."""

from __future__ import annotations

from pydantic import Field

from expc.components.core import Component, Form, Params
from expc.ir import BinaryLogits, ClassId, ClassLogits, ClassProbs, Prob, Real


class Nothing(Params):
    """No parameters."""


class Threshold(Params):
    """A threshold that splits yes from no."""

    threshold: float = Field(0.5, description="an answer at or above it counts as yes")


class Accuracy(Params):
    """Parameters of `accuracy`; the threshold is for yes-or-no answers."""

    threshold: float = Field(0.5, description="an answer at or above it counts as yes")


class TopK(Params):
    """Parameters of `top_k`."""

    k: int = Field(5, ge=1, description="how many answers count")


_YES_NO = (Form((Prob, Prob)), Form((BinaryLogits, Prob)))

METRICS = (
    Component(
        "metric", "accuracy", "share of right answers", Accuracy, better="higher",
        traits=frozenset({"constant_by_majority", "share"}),
        forms=(
            Form((ClassLogits, ClassId), "expc_runtime.metrics:Accuracy"),
            Form((ClassLogits, ClassProbs), "expc_runtime.metrics:Accuracy"),
            Form((Prob, Prob), "expc_runtime.metrics:BinaryAccuracy"),
            Form((BinaryLogits, Prob), "expc_runtime.metrics:BinaryAccuracy"),
        ),
    ),
    Component(
        "metric", "brier", "mean squared error of a probability", Nothing,
        "expc_runtime.metrics:Brier", (Form((Prob, Prob)),), better="lower",
        traits=frozenset({"constant_by_variance", "share"}),
    ),
    Component(
        "metric", "f1", "F1 of yes over all answers", Threshold,
        "expc_runtime.metrics:F1", _YES_NO, better="higher",
        traits=frozenset({"constant_all_yes", "finds_yes", "share"}),
    ),
    Component(
        "metric", "sample_f1", "F1 of each row's yes answers, mean over rows", Threshold,
        "expc_runtime.metrics:SampleF1", _YES_NO, better="higher",
        traits=frozenset({"finds_yes", "by_row", "share"}),
    ),
    Component(
        "metric", "exact_match", "share of rows with every answer right", Threshold,
        "expc_runtime.metrics:ExactMatch", _YES_NO, better="higher",
        traits=frozenset({"share"}),
    ),
    Component(
        "metric", "top_k", "share of rows whose class is among the k best", TopK,
        "expc_runtime.metrics:TopK",
        (Form((ClassLogits, ClassId)), Form((ClassLogits, ClassProbs))), better="higher",
        traits=frozenset({"share"}),
    ),
    Component(
        "metric", "mae", "mean absolute error", Nothing,
        "expc_runtime.metrics:MeanAbsoluteError", (Form((Prob, Prob)), Form((Real, Real))),
        better="lower",
    ),
)  # fmt: skip
