"""Names that generated code has already: a spec's names become locals, attributes, classes and files beside them."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Iterable, Iterator

from expc.findings import Finding, Note, Span

ATTRIBUTES = frozenset(
    [
        "act",
        "add_module",
        "all_gather",
        "allow_zero_length_dataloader_with_multiple_devices",
        "among",
        "answering",
        "apply",
        "autocast",
        "automatic_optimization",
        "backward",
        "batches_from",
        "bfloat16",
        "buffers",
        "call_super_init",
        "cfg",
        "children",
        "clip_gradients",
        "compile",
        "configure_callbacks",
        "configure_gradient_clipping",
        "configure_model",
        "configure_optimizers",
        "configure_sharded_model",
        "constants",
        "cpu",
        "cuda",
        "current_epoch",
        "device",
        "device_mesh",
        "double",
        "drive",
        "drive_names",
        "drives",
        "dtype",
        "dump_patches",
        "eager",
        "epoch",
        "eval",
        "example_input_array",
        "extra_repr",
        "fabric",
        "float",
        "forward",
        "freeze",
        "get_buffer",
        "get_extra_state",
        "get_parameter",
        "get_submodule",
        "global_rank",
        "global_step",
        "half",
        "half_dtype",
        "held",
        "hold",
        "hparams",
        "hparams_initial",
        "in_update",
        "initial",
        "ipu",
        "last_batch",
        "load_from_checkpoint",
        "load_state_dict",
        "local_rank",
        "log",
        "log_dict",
        "log_every",
        "logger",
        "loggers",
        "losses",
        "lr_scheduler_step",
        "lr_schedulers",
        "manual_backward",
        "measure",
        "measured",
        "metrics",
        "modules",
        "mtia",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "next_epoch",
        "on_after_backward",
        "on_after_batch_transfer",
        "on_before_backward",
        "on_before_batch_transfer",
        "on_before_optimizer_step",
        "on_before_zero_grad",
        "on_diverged",
        "on_first_batch",
        "on_fit_end",
        "on_fit_start",
        "on_flush",
        "on_gpu",
        "on_load_checkpoint",
        "on_predict_batch_end",
        "on_predict_batch_start",
        "on_predict_end",
        "on_predict_epoch_end",
        "on_predict_epoch_start",
        "on_predict_model_eval",
        "on_predict_start",
        "on_save_checkpoint",
        "on_test_batch_end",
        "on_test_batch_start",
        "on_test_end",
        "on_test_epoch_end",
        "on_test_epoch_start",
        "on_test_model_eval",
        "on_test_model_train",
        "on_test_start",
        "on_train_batch_end",
        "on_train_batch_start",
        "on_train_end",
        "on_train_epoch_end",
        "on_train_epoch_start",
        "on_train_start",
        "on_validation_batch_end",
        "on_validation_batch_start",
        "on_validation_end",
        "on_validation_epoch_end",
        "on_validation_epoch_start",
        "on_validation_model_eval",
        "on_validation_model_train",
        "on_validation_model_zero_grad",
        "on_validation_start",
        "one_answer",
        "only",
        "optimizer_step",
        "optimizer_zero_grad",
        "optimizers",
        "parameters",
        "pieces",
        "predict_dataloader",
        "predict_step",
        "prepare_data",
        "prepare_data_per_node",
        "print",
        "progress",
        "ranks",
        "record",
        "records",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_module",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "rehearsal",
        "rehearse",
        "rehearses",
        "remove_ignored_hparams",
        "requires_grad_",
        "resume",
        "rises",
        "rows_of",
        "save_hyperparameters",
        "set_extra_state",
        "set_submodule",
        "settle",
        "setup",
        "share_memory",
        "stand_at",
        "start",
        "state_dict",
        "step",
        "strict_loading",
        "take_back",
        "teardown",
        "test_dataloader",
        "test_step",
        "to",
        "to_empty",
        "to_onnx",
        "to_tensorrt",
        "to_torchscript",
        "toggle_optimizer",
        "toggled_optimizer",
        "train",
        "train_dataloader",
        "trainer",
        "training",
        "training_step",
        "transfer_batch_to_device",
        "type",
        "unfreeze",
        "untoggle_optimizer",
        "update",
        "updates",
        "val_dataloader",
        "validation_step",
        "wake_at",
        "watch",
        "xpu",
        "zero_grad",
    ]
)
"""Attributes of the runtime's module: a part or a metric of that name would replace it. A test holds it complete."""

IMPORTED = frozenset(sys.stdlib_module_names) | {
    "expc", "expc_runtime", "matplotlib", "numpy", "pytorch_lightning", "rich", "safetensors", "sklearn", "tensorboard", "torch",
    "torchmetrics",
}  # fmt: skip
"""Modules that a run imports: a generated file of that name would hide them, as it stands first on the path."""

_CLASSES = frozenset({"Batch", "Config", "Drive", "Module", "Path", "Run", "Tensor"})


TAKEN = frozenset({"batch", "features", "floors", "losses", "self", "cfg"})
"""Variables and modules that the methods of a generated class use."""


def class_name(stage: str) -> str:
    """The class of a stage's module: `read_digits` is `ReadDigits`."""
    name = "".join(word.capitalize() for word in stage.split("_"))
    return f"{name}Stage" if name in _CLASSES else name


def is_local(name: str) -> bool:
    """Whether a name can be a variable of a method."""
    return name.isidentifier() and not keyword.iskeyword(name) and name not in ("self", "cfg")


def hides_module(stage: str, span: Span) -> Iterator[Finding]:
    """A stage whose file would stand in the way of an import."""
    if stage in IMPORTED:
        yield Finding(
            "XC105",
            f"`{stage}` is the name of a module that a run imports",
            span,
            why=f"`{stage}.py` beside the generated files would be imported in its place",
            help="choose another name for the stage",
        )


def clashes(named: Iterable[tuple[str, Span]], what: str) -> Iterator[Finding]:
    """Names that are given to two things."""
    seen: dict[str, Span] = {}
    for name, span in named:
        if name in seen:
            yield Finding(
                "XC105",
                f"two {what} would be named `{name}`",
                span,
                why="the generated code would read one for the other",
                help="choose another name for one of them",
                notes=(Note(seen[name], "the first one"),),
                spans=(seen[name],),
            )
        seen.setdefault(name, span)


def replaced(named: Iterable[tuple[str, Span]]) -> Iterator[Finding]:
    """Parts and metrics with the name of something that every module has."""
    for name, span in named:
        if name in ATTRIBUTES:
            yield Finding(
                "XC105",
                f"`{name}` is something that every module has already",
                span,
                why="it becomes an attribute of the generated class, and would replace that",
                help="choose another name",
            )
