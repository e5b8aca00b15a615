"""Parameters: the fields of a technique's dataclass, checked when it is made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Lt

from pellucid import Explainer, ParameterError, PluginError


@dataclass(frozen=True, eq=False)
class Technique(Explainer):
    """Has a parameter of every kind."""

    layer: str = "auto"
    n_steps: Annotated[int, Ge(1)] = 50
    scale: Annotated[float, Gt(0), Lt(1)] = 0.5
    share: float | None = None
    mode: Literal["mean", "max"] = "mean"
    sizes: tuple[int, ...] = (1, 2)
    signed: bool = False
    baseline: Any = "zero"
    weights: torch.Tensor | None = None
    of: Explainer | None = None
    extra: dict[str, int] = field(default_factory=dict)

    def explain(self, sample):
        return None


def test_defaults_and_get_params():
    made = Technique()
    assert list(made.get_params()) == [
        "layer", "n_steps", "scale", "share", "mode", "sizes", "signed", "baseline", "weights", "of", "extra",
    ]  # fmt: skip
    again = Technique(**made.get_params())
    assert again.get_params() == made.get_params()


def test_values_are_made_what_the_type_says():
    made = Technique(n_steps=3.0, scale="0.25", sizes=[3, 4], share=1)
    assert (made.n_steps, made.scale, made.sizes, made.share) == (3, 0.25, (3, 4), 1.0)
    assert isinstance(made.n_steps, int)
    inner, weights = Technique(), torch.ones(2)
    made = Technique(of=inner, weights=weights, baseline=weights)
    assert made.of is inner
    assert made.weights is weights
    assert made.baseline is weights


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n_steps": 0}, "n_steps=0.*greater than or equal to 1"),
        ({"n_steps": 2.5}, "n_steps=2.5.*integer"),
        ({"n_steps": "many"}, "n_steps='many'.*integer"),
        ({"n_steps": True}, "not a bool"),
        ({"share": True}, "not a bool"),
        ({"scale": 1.0}, "less than 1"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"mode": "median"}, "'mean' or 'max'"),
        ({"sizes": [1, "two"]}, "integer"),
        ({"signed": "perhaps"}, "bool"),
        ({"layer": 4}, "string"),
        ({"weights": [1, 2]}, "Tensor"),
        ({"of": "saliency"}, "Explainer"),
    ],
)
def test_what_does_not_fit_is_told_with_the_name_and_the_value(given, told):
    with pytest.raises(ParameterError, match=told) as error:
        Technique(**given)
    assert "Technique(" in str(error.value)


def test_a_type_that_its_module_does_not_know_is_the_plugin_s_mistake():
    unknown = type("Unknown", (Technique,), {"__annotations__": {"other": "Nowhere"}, "other": None})
    with pytest.raises(PluginError, match=r"a parameter of Unknown has a type.*'Nowhere' is not defined"):
        dataclass(frozen=True, eq=False)(unknown)()


def test_instances_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Technique().n_steps = 3
