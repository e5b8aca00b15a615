"""Weights that stand for a model's own in a pass, such as those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pellucid.errors import ModelError


def fitted(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights of the model's own types, on its device.

    Args:
        module: the model.
        weights: parameters and buffers, as in its `state_dict`.
        name: what messages call the model.

    Raises:
        ModelError: when they are those of another model.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # Tied parameters have several names, of which the first is enough.
    given = {name: tensor for name, tensor in weights.items() if name in own}
    strange = weights.keys() - given.keys() - module.state_dict().keys()
    shapes = [name for name, tensor in given.items() if tensor.shape != own[name].shape]
    if strange or shapes or not given:
        raise ModelError(
            f"the weights are not those of {name}: {sorted(strange)[:3] or shapes[:3]} are unknown or of another "
            "shape; expected names and shapes as in the model's state_dict"
        )
    return {name: tensor.detach().to(own[name]) for name, tensor in given.items()}
