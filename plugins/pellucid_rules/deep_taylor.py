"""Deep Taylor decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from pellucid import Attribution, Explainer, Look, Passes, Rule, Sample
from pellucid_rules.composites import policy, relevance_rules
from pellucid_rules.lrp import Canonizer, bounds, relevance_checks
from pellucid_rules.lrp_rules import SameSign, WSquare, ZBox, ZPlus


@dataclass(frozen=True, eq=False)
class DeepTaylor(Explainer):
    """Shares the score out by Taylor expansions of each neuron's relevance about a root point of its own.

    Where the root point is sought decides the rule. Between layers with ReLUs it is among inputs that are not negative,
    which gives the z+ rule; at the first layer among the inputs that can be, see `root`. What relevance is positive
    stays so, and none is lost to biases: the values of a positive score are nowhere negative, and sum to it.

    Montavon et al., 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition", for networks
    of convolutions, ReLUs, pooling and biases that are not positive. Beyond these, residual sums are shared among the
    branches that have the sum's sign, signed inputs count by their positive contributions, and attention weights are
    held constant.

    Attributes:
        root: where the first layer's root point is sought: `"box"` among inputs between `low` and `high` (z-box),
            `"unbounded"` among all (w squared), `"positive"` among those that are not negative (z+).
        low: the least value of an input, as for `lrp`.
        high: the greatest value of an input, as for `lrp`.
        canonizers: `"batch_norm"` folds BatchNorms into the convolutions that alone feed them.
        stabilizer: moves denominators away from zero, in units of activations.
        layer: `"input"`, or a layer's name, or `"auto"`: where the relevance is shown, in the shape of its output.

    Raises:
        ParameterError: for bounds that do not fit the inputs.
    """

    root: Literal["box", "unbounded", "positive"] = "box"
    low: Any = "auto"
    high: Any = "auto"
    canonizers: tuple[Canonizer, ...] = ("batch_norm",)
    stabilizer: Annotated[float, Ge(0)] = 1e-9
    layer: str = "input"

    axioms: ClassVar[frozenset[str]] = frozenset({"symmetry", "implementation_invariance"})

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds(self.low, self.high, None)

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Each place of the root."""
        return [cls(), cls(root="unbounded"), cls(root="positive")]

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """One forward pass, and one back by the rules."""
        first: dict[str, Rule] = {
            "box": ZBox(*bounds(self.low, self.high, sample), self.stabilizer),
            "unbounded": WSquare(self.stabilizer, bias=False),
            "positive": ZPlus(self.stabilizer, bias=False),
        }
        table = policy(self.stabilizer, "constant") | {
            "weighted": ZPlus(self.stabilizer, bias=False),
            "sum": SameSign(self.stabilizer),
            "first": first[self.root],
        }
        rules = relevance_rules("deep_taylor", table, self.canonizers)
        seen = yield Look(at=sample, gradients=[self.layer], rules=rules)
        assert seen.ledger is not None
        return Attribution(seen.gradients[self.layer], over=self.layer, checks=relevance_checks(seen.ledger))
