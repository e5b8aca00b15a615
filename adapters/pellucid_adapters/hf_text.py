"""Text models of Hugging Face transformers, explained through their embedding layer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from pellucid import Adapter, Attribution, Frame, InputError, ModelError, ParameterError, Prepared
from pellucid_adapters.hf_tokens import Vocabulary
from pellucid_adapters.module import adapted


class Embedded:
    """A mixin of text models that takes the place of what the embedding layer gives.

    The model is called with its token ids as ever, so that what it reads off them (positions, the last token that is no
    padding) stays right, and what it makes of `embeddings` can be differentiated. Giving `inputs_embeds` in place of
    the ids would be silently wrong for the models that pool at the last token, and is refused by others.
    """

    def forward(self, embeddings: Tensor | None = None, **arguments: Any) -> Any:
        """Runs the model; `embeddings` (B, D, T) stand in for those of the ids.

        Raises:
            ModelError: the embedding layer is not called just once, so that they have no one place.
        """
        run: Callable[..., Any] = super().forward  # type: ignore[misc]
        if embeddings is None:
            return run(**arguments)
        calls: list[int] = []

        def replaced(layer: nn.Module, given: Any, output: Tensor) -> Tensor:
            calls.append(1)
            return embeddings.transpose(1, 2)

        # Before all other hooks, so that whoever looks at the layer sees what the model goes on with.
        handles = [layer.register_forward_hook(replaced, prepend=True) for layer in _embedding_layers(self)]
        try:
            with _traceable():
                output = run(**arguments)
        finally:
            for handle in handles:
                handle.remove()
        if len(calls) != 1:
            raise ModelError(
                f"{type(self).__name__} calls its embedding layer {len(calls)} times in one pass; expected once, so "
                "that attribution has one place. Leave out token_type_ids where the layer embeds them too; of a model "
                "whose decoder reads the text as well (T5, BART), explain a classifier on its encoder"
            )
        return output


def adapt(model: nn.Module, options: dict[str, Any]) -> Adapter | None:
    """Adapts a model that takes `input_ids` first and has an embedding layer; None for others.

    Explained are the embeddings of the tokens, a signal (B, D, T) whose channels are the D numbers of an embedding: any
    technique for signals works on it. Attributions of it become attributions of the tokens.

    Options: `tokenizer`, by which texts are taken, and token ids have names; `max_length`, the most tokens of a text
    (by default what tokenizer and model allow).

    Raises:
        ParameterError: the tokenizer is none, or an option is wrong.
    """
    if next(iter(inspect.signature(model.forward).parameters), "") != "input_ids":
        return None
    options = dict(options)
    tokenizer, longest = options.pop("tokenizer", None), options.pop("max_length", None)
    if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ParameterError(f"tokenizer is a {type(tokenizer).__name__}; expected the model's tokenizer object")
    if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool) or longest < 1):
        raise ParameterError(f"max_length={longest!r}: expected a whole number of tokens, at least 1")
    try:
        _embedding_layer(model)
    except ModelError:
        return None
    # The copy shares all layers and parameters; only its class differs, by which it takes embeddings.
    embedded = copy.copy(model)
    embedded.__class__ = type(type(model).__name__, (Embedded, type(model)), {"__module__": type(model).__module__})
    reader = Reader(embedded, Vocabulary(tokenizer, getattr(model, "config", None)), longest)
    return adapted(embedded, options, categories=categories_of(model), prepare=reader)


def categories_of(model: nn.Module) -> list[str] | None:
    """The names of the classes, where the configuration was told any.

    Without, it names them LABEL_0, LABEL_1, ...: that says no more than the index.
    """
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    told = any(str(name) != f"LABEL_{index}" for index, name in names.items())
    return [str(names[index]) for index in sorted(names)] if told else None


@dataclass(frozen=True, eq=False)
class Reader:
    """Makes embeddings of texts, or of token ids.

    Attributes:
        model: whose embedding layer and limits count.
        vocabulary: the tokens.
        max_length: the most tokens that the user wants, or None.
    """

    model: nn.Module
    vocabulary: Vocabulary
    max_length: int | None = None

    def __call__(self, inputs: Any) -> Prepared | None:
        """The embeddings of texts (strings, or pairs of them) or of a mapping with `input_ids`; None for other inputs.

        Raises:
            InputError: there is nothing to read, no tokenizer, or the ids are not whole numbers of the vocabulary.
        """
        notes: tuple[str, ...] = ()
        if isinstance(inputs, Mapping):
            if "input_ids" not in inputs:
                return None
            arguments = {str(name): _whole(str(name), value) for name, value in inputs.items() if value is not None}
        elif (texts := _texts(inputs)) is not None:
            arguments, notes = self._tokenised(texts)
        elif isinstance(inputs, Tensor) and inputs.is_floating_point():
            raise InputError(
                f"the inputs are numbers of shape {tuple(inputs.shape)}; expected texts, or a mapping with input_ids"
            )
        else:
            arguments = {"input_ids": _whole("input_ids", inputs)}
        self._check(arguments)
        layer = _embedding_layer(self.model)
        device = next(layer.parameters()).device
        arguments = {name: value.to(device) for name, value in arguments.items()}
        with torch.no_grad():
            embeddings = layer(arguments["input_ids"])
        if embeddings.dim() != 3:
            raise ModelError(f"the embedding layer gives {tuple(embeddings.shape)}; expected (B, T, D)")
        present = partial(self._present, arguments)
        frame = Frame(_call, arguments, self._baselines(layer), present, lambda extras: _read(extras).unsqueeze(1))
        return Prepared(embeddings.transpose(1, 2).contiguous(), frame, notes)

    def _tokenised(self, texts: list[tuple[str, ...]]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        tokenizer = self.vocabulary.tokenizer
        if tokenizer is None:
            raise InputError(
                "texts were given, but the model's tokenizer is not known; say pellucid.adapt(model, tokenizer=...), "
                "or give a mapping with input_ids"
            )
        if not texts:
            raise InputError("there are no texts; expected at least one")
        if empty := [place for place, text in enumerate(texts) if not all(part.strip() for part in text)]:
            raise InputError(f"the texts {empty[:10]} are empty; remove them")
        parts = [list(part) for part in zip(*texts, strict=True)]
        whole = tokenizer(*parts, verbose=False)
        limit, notes = self.limit, []
        lengths = [len(ids) for ids in whole["input_ids"]]
        if limit is not None and max(lengths) > limit:
            whole = tokenizer(*parts, truncation=True, max_length=limit)
            notes = [
                f"text {place} was cut from {length} to {limit} tokens"
                for place, length in enumerate(lengths)
                if length > limit
            ]
        if none := [place for place, ids in enumerate(whole["input_ids"]) if not ids]:
            raise InputError(f"the tokenizer makes no token of the texts {none[:10]}; remove them")
        # Padding by hand: a tokenizer without a token for it would refuse, and some pad on the left.
        longest = max(len(ids) for ids in whole["input_ids"])
        padding = {"input_ids": self.vocabulary.padding or 0}
        arguments = {
            name: torch.tensor([list(row) + [padding.get(name, 0)] * (longest - len(row)) for row in whole[name]])
            for name in whole
            if name in ("input_ids", "token_type_ids")
        }
        ends = torch.tensor([len(ids) for ids in whole["input_ids"]])
        arguments["attention_mask"] = (torch.arange(longest) < ends[:, None]).long()
        return arguments, tuple(notes)

    @cached_property
    def limit(self) -> int | None:
        """The most tokens that the model can read at once, as far as that is known."""
        limits = [self.max_length]
        told = getattr(self.vocabulary.tokenizer, "model_max_length", None)
        limits.append(told if told is not None and told < 1e9 else None)  # unknown is a huge number
        for name, part in self.model.named_modules():
            if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(part, nn.Embedding):
                # RoBERTa and its kin count positions from behind the padding's own.
                limits.append(part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1))
        return min((limit for limit in limits if limit is not None), default=None)

    def _check(self, arguments: Mapping[str, Tensor]) -> None:
        ids, layer = arguments["input_ids"], _embedding_layer(self.model)
        if ids.dim() != 2 or 0 in ids.shape:
            raise InputError(f"input_ids have shape {tuple(ids.shape)}; expected (B, T) with at least one token")
        known = getattr(layer, "num_embeddings", None)
        if int(ids.min()) < 0 or (known is not None and int(ids.max()) >= known):
            raise InputError(
                f"input_ids go from {int(ids.min())} to {int(ids.max())}; the model's vocabulary has {known} tokens, "
                "from 0: is the tokenizer this model's?"
            )
        if self.limit is not None and ids.shape[1] > self.limit:
            raise InputError(f"input_ids have {ids.shape[1]} tokens; the model reads at most {self.limit}")
        for name, value in arguments.items():
            if value.shape[:1] != ids.shape[:1]:
                raise InputError(
                    f"{name} have shape {tuple(value.shape)}; expected one row for each of {len(ids)} texts"
                )
        mask = arguments.get("attention_mask")
        if mask is not None and (mask.shape != ids.shape or not bool(mask.bool().any(dim=1).all())):
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, or a row without a token; expected {tuple(ids.shape)}, "
                "with 1 where a token is to be read"
            )

    def _baselines(self, layer: nn.Module) -> dict[str, Callable[[Tensor, dict[str, Tensor]], Tensor]]:
        """Words that replace the ordinary tokens; the tokenizer's own, which every text has, stay."""

        def by_token(token: int) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
            def make(embeddings: Tensor, extras: dict[str, Tensor]) -> Tensor:
                with torch.no_grad():
                    one = layer(torch.full((1, 1), token, device=extras["input_ids"].device)).to(embeddings)
                return torch.where(self._ordinary(extras), one.transpose(1, 2), embeddings)

            return make

        def mean(embeddings: Tensor, extras: dict[str, Tensor]) -> Tensor:
            ordinary = self._ordinary(extras)
            total = torch.where(ordinary, embeddings, torch.zeros_like(embeddings)).sum(dim=2, keepdim=True)
            return torch.where(ordinary, total / ordinary.sum(dim=2, keepdim=True).clamp_min(1), embeddings)

        return {"mean": mean, **{word: by_token(token) for word, token in self.vocabulary.fillers.items()}}

    def _ordinary(self, extras: Mapping[str, Tensor]) -> Tensor:
        """Which tokens, (B, 1, T), are neither padding nor special."""
        ids = extras["input_ids"]
        special = torch.isin(ids, torch.tensor(sorted(self.vocabulary.special), dtype=ids.dtype, device=ids.device))
        return (_read(extras) & ~special).unsqueeze(1)

    def _present(self, extras: Mapping[str, Tensor], result: Attribution) -> Attribution:
        """An attribution of the embeddings, as one of the tokens: see `Attribution.reduce`.

        Embeddings say nothing to a reader, so they are not kept.
        """
        ids, read = extras["input_ids"].cpu(), _read(extras).cpu()
        values = result.values
        of_embeddings = isinstance(values, Tensor) and values.dim() == 3 and values.shape[::2] == ids.shape
        if result.over != "input" or not of_embeddings:
            return replace(result, inputs=None)
        # Tokens come first and padding last, on whichever side it was.
        order = read.int().argsort(dim=1, descending=True, stable=True).to(values.device)
        kept = read.to(values.device).gather(1, order)

        def in_order(each: Tensor) -> Tensor:
            own = each.gather(1, order.to(each.device))
            return torch.where(kept.to(own.device), own, torch.zeros_like(own))[:, : int(kept.sum(dim=1).max())]

        # Of a sum of channels that were changed one by one the error is not known from theirs.
        error = in_order(result.error[:, 0]) if result.error is not None and result.reduce == "once" else None
        return replace(
            result,
            values=in_order(_REDUCED[result.reduce](values)),
            error=error,
            over="tokens",
            tokens=tuple(self.vocabulary.labels(row[shown].tolist()) for row, shown in zip(ids, read, strict=True)),
            reduce="sum",
            inputs=None,
        )


@contextmanager
def _traceable() -> Iterator[None]:
    """Says that a compiler is at work, as `torch.export` does, where operations are being recorded.

    A model of transformers then leaves out the shortcuts that it takes by the values of its masks, by which one graph
    could not stand for it.
    """
    if not is_in_torch_dispatch_mode():
        yield
        return
    # Nothing public says so, but what transformers asks is public. The other way, to ask for "eager" attention while
    # recording, would change the configuration that is the user's too, and with it how the softmax is computed in half
    # precision. It stays out of the core since it is transformers that asks.
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        yield


_REDUCED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda values: values.sum(dim=1),
    "once": lambda values: values[:, 0],
    # Behind a LayerNorm the slopes of an embedding sum to zero, whatever the token.
    "norm": lambda values: values.norm(dim=1),
}


def _call(embeddings: Tensor, extras: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (), {"embeddings": embeddings, **extras}


def _read(extras: Mapping[str, Tensor]) -> Tensor:
    """Which positions, (B, T), are read: all that are no padding."""
    mask = extras.get("attention_mask")
    return torch.ones_like(extras["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def _embedding_layer(model: Any) -> nn.Module:
    try:
        layer = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        layer = None
    if not isinstance(layer, nn.Module) or next(layer.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no embedding layer that could be explained")
    return layer


def _embedding_layers(model: Any) -> list[nn.Module]:
    """The embedding layer and those like it with the very same weights: each stack of a T5 calls one of its own."""
    layer = _embedding_layer(model)
    kind, weight, scale = type(layer), getattr(layer, "weight", None), getattr(layer, "embed_scale", 1)
    if weight is None:
        return [layer]
    alike = [part for part in model.modules() if type(part) is kind and part.weight is weight]
    return [part for part in alike if getattr(part, "embed_scale", 1) == scale]


def _texts(inputs: Any) -> list[tuple[str, ...]] | None:
    """Texts, or pairs of them, each as a tuple; None where the inputs are something else.

    Raises:
        InputError: some are texts and others are not, or single texts and pairs are mixed.
    """
    listed = [inputs] if isinstance(inputs, str) else _listed(inputs)
    rows = [(one,) if isinstance(one, str) else one for one in listed]
    texts = [isinstance(row, (tuple, list)) and bool(row) and all(isinstance(p, str) for p in row) for row in rows]
    if rows and not any(texts):
        return None
    if not all(texts) or len({len(row) for row in rows}) > 1 or any(len(row) > 2 for row in rows):
        raise InputError("the inputs mix texts with something else; expected a list of strings, or of pairs of strings")
    return [tuple(row) for row in rows]


def _listed(inputs: Any) -> Sequence[Any]:
    values = inputs.tolist() if hasattr(inputs, "tolist") and not isinstance(inputs, Tensor) else inputs
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _whole(name: str, value: Any) -> Tensor:
    """An argument (B, ...) of the model that goes along with the ids."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} are no tensor ({error}); expected whole numbers (B, T): pad the texts to one length"
        ) from None
    if name == "input_ids" and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise InputError(f"input_ids are of type {tensor.dtype}; expected whole numbers, the tokens' places")
    if tensor.dim() == 0:
        raise InputError(f"{name} is one number; expected (B, ...)")
    return tensor.detach().long() if name == "input_ids" else tensor.detach()
