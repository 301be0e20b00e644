"""How a model is trained: all numbers that decide its weights, but for its data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    shift
        Largest random translation of an image in pixels, each direction.
    cutout
        Side of a square erased at a random place, in pixels; 0 erases nothing.
    teacher_weight
        Of the teacher's answers in the loss, against the labels; 0 trains on labels alone.
    monitor_size
        Training samples held back for early stopping; 0 trains on all and never stops early.
    patience
        Epochs without a new best accuracy on those samples after which training stops.
    optimiser
        ``sgd`` with Nesterov momentum 0.9, or ``adamw``.
    bfloat16
        Whether convolutions and products are computed in bfloat16. Depthwise convolutions are
        three times as fast in float32 on a CPU.
    hidden_weight
        Of the mean squared difference to the teacher's hidden states, which is added to the loss.
    average
        Decay of the running mean of the weights, which is what is monitored and returned; 0 keeps
        the weights themselves. Early on the decay is less: ``(1 + step) / (10 + step)``.
    gatekeeper
        ``a`` of the loss that shapes confidence, in place of cross-entropy; 0 is cross-entropy.
    """

    epochs: int
    seed: int
    batch: int = 256
    learning_rate: float = 0.15
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    shift: int = 1
    mirror: bool = True
    cutout: int = 0
    teacher_weight: float = 0.0
    temperature: float = 4.0
    monitor_size: int = 2_000
    patience: int = 10
    optimiser: Literal["sgd", "adamw"] = "sgd"
    bfloat16: bool = True
    hidden_weight: float = 0.0
    average: float = 0.0
    gatekeeper: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss has a term that a teacher gives."""
        return self.teacher_weight > 0 or self.hidden_weight > 0

    def is_described_by(self, stored: dict[str, Any]) -> bool:
        """Tell whether a stored recipe is this one; what it does not mention has its default."""
        return DEFAULTS | stored == asdict(self)


DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in fields(Recipe) if field.name not in ("epochs", "seed")
}
"""Of the fields that a card or checkpoint from before they existed does not have."""
