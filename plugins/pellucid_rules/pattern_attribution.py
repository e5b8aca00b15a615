"""PatternAttribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pellucid_rules.pattern_net import PatternNet


@dataclass(frozen=True, eq=False)
class PatternAttribution(PatternNet):
    """Shares out the score over the signal that patterns fitted on data find: PatternNet with w a in place of a.

    Deep Taylor decomposition whose root point leaves each neuron only its distractor. Since w^T a = 1, each weighted op
    conserves what it is handed; what arrives at a neuron that is not active is lost, as is what biases account for.

    Kindermans et al., 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution". Parameters
    and refusals are those of `pattern_net`.
    """

    times_weight: ClassVar[bool] = True
