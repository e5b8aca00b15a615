"""The two curves of RISE's paper, as pixel flipping with other settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pellucid_evaluation.pixel_flipping import PixelFlipping


@dataclass(frozen=True, eq=False)
class Deletion(PixelFlipping):
    """The area under the probability while the most relevant regions are hidden one after the other.

    `PixelFlipping` with `measure="deletion_auc"`, softmax probabilities and grey (zero), as in Petsiuk et al., 2018,
    where single pixels are hidden, 224 at a time.
    """

    measure: Literal["deletion_auc"] = "deletion_auc"
    probability: bool = True

    label: ClassVar[str] = "deletion"

    @classmethod
    def test_instances(cls) -> list[PixelFlipping]:
        """Few steps."""
        return [cls(n_steps=4, regions=4)]


@dataclass(frozen=True, eq=False)
class Insertion(PixelFlipping):
    """The area under the probability while the most relevant regions are shown one after the other.

    `PixelFlipping` with `measure="insertion_auc"`, softmax probabilities and a blurred image to begin with, as in
    Petsiuk et al., 2018; give another `substitution` for tables and signals.
    """

    measure: Literal["insertion_auc"] = "insertion_auc"
    substitution: Any = "blur"
    probability: bool = True

    label: ClassVar[str] = "insertion"

    @classmethod
    def test_instances(cls) -> list[PixelFlipping]:
        """Few steps."""
        return [cls(n_steps=4, regions=4)]
