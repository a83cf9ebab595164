"""What a precision is called, and whether a device has it."""

import torch

__all__ = ["HALF", "require_autocast"]

HALF: dict[str, torch.dtype | None] = {
    "32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""The dtype of autocast by the name of a precision; None in plain float32."""


def require_autocast(device: str, half: torch.dtype) -> None:
    """Never another precision in silence: this torch either has it on this device or says so."""
    name = str(half).removeprefix("torch.")
    if device == "cuda":
        if half is torch.bfloat16 and not torch.cuda.is_bf16_supported():
            raise ValueError(f"precision bf16-mixed: this GPU has no {name}; use 16-mixed or 32")
        return
    try:
        with torch.autocast(device, half):
            made = torch.zeros(1, 1, device=device) @ torch.zeros(1, 1, device=device)
    except RuntimeError as error:
        raise ValueError(f"no {name} autocast on {device} in this torch: {error}") from error
    if made.dtype is not half:
        raise ValueError(
            f"this torch has no {name} autocast on {device} (it would compute in {made.dtype}); "
            "use precision 32 or another device"
        )
