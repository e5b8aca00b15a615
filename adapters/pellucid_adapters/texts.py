"""Functions of texts as black boxes: what is left when words are hidden."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pellucid import Adapter, Attribution, Frame, InputError, ParameterError, Prepared
from pellucid_adapters.settings import settled

_WORD = re.compile(r"\s*(?:[\w'’-]+|[^\w\s]+)")


class Reading(nn.Module):
    """Calls a function of texts with those words that are shown.

    Attributes:
        scorer: takes texts (B,) as a list and gives a tensor (B, classes).
        hidden: what stands in place of a word that is hidden; "" leaves it out.
    """

    def __init__(self, scorer: Callable[[list[str]], Tensor], hidden: str) -> None:
        super().__init__()
        self.scorer, self.hidden = scorer, hidden
        self.eval()

    def forward(self, shown: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
        """Gives the scores of each text; a word is shown where its number (B, n) is at least a half."""
        rows = (shown.detach() >= 0.5).tolist()
        return self.scorer([self._rest(words, row) for words, row in zip(texts, rows, strict=True)]).to(shown.device)

    def _rest(self, words: Sequence[str], shown: Sequence[bool]) -> str:
        kept = []
        for word, seen in zip(words, shown, strict=False):
            if seen:
                kept.append(word)
            elif self.hidden:
                kept.append(word[: len(word) - len(word.lstrip())] + self.hidden)
        return "".join(kept).strip()


def adapted(scorer: Callable[[list[str]], Tensor], options: dict[str, Any], **known: Any) -> Adapter:
    """Adapts a function of texts: a table whose features are the words, 1 where they are shown and 0 where not.

    So every technique for black boxes over tables explains it: occlusion hides a word at a time.

    The option `hidden` is what stands in place of a hidden word, such as "[MASK]"; by default it is left out.
    """
    options = dict(options)
    hidden = options.pop("hidden", "")
    if not isinstance(hidden, str):
        raise ParameterError(f"hidden={hidden!r}: expected a text, such as '[MASK]', or '' to leave words out")
    notes = (*known.pop("notes", ()), "words are shown or hidden" + (f" behind '{hidden}'" if hidden else ""))
    return Adapter(
        Reading(scorer, hidden),
        offers=frozenset({"outputs"}),
        prepare=prepare,
        **settled(options, notes=notes, **known),
    )


@dataclass(frozen=True, eq=False)
class _Words:
    """The words of some texts, each with the white space before it."""

    texts: tuple[tuple[str, ...], ...]

    def call(self, shown: Any, extras: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's arguments, for rows of these texts."""
        return (shown,), {"texts": [self.texts[place] for place in extras["text"].tolist()]}


def prepare(inputs: Any) -> Prepared:
    """Makes a table of words of texts.

    Raises:
        InputError: the inputs are no texts, or one has no word.
    """
    given = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, Mapping) or not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise InputError(
            f"the inputs are a {type(inputs).__name__}; this model reads texts: expected a list of strings"
        )
    words = tuple(tuple(_WORD.findall(text)) for text in texts)
    if not words or not all(words):
        empty = [place for place, one in enumerate(words) if not one]
        raise InputError(f"the texts {empty[:10]} are empty; remove them" if words else "there are no texts")
    shown = torch.ones(len(words), max(map(len, words)), dtype=torch.float64)
    ends = torch.tensor([len(one) for one in words])

    def mask(extras: dict[str, Tensor]) -> Tensor:
        return torch.arange(shown.shape[1]) < ends[extras["text"].cpu(), None]

    extras = {"text": torch.arange(len(words))}
    frame = Frame(_Words(words).call, extras, present=partial(_present, words), mask=mask)
    return Prepared(shown, frame)


def _present(words: Sequence[Sequence[str]], result: Attribution) -> Attribution:
    """An attribution of the table of words, as one of the texts; a shorter text's row ends in zeros."""
    values = result.values
    if result.over not in ("input", "features") or not isinstance(values, Tensor) or values.dim() != 2:
        return replace(result, inputs=None)
    tokens = tuple(tuple(word.strip() for word in one) for one in words)
    ends = torch.tensor([len(one) for one in tokens], device=values.device)
    kept = torch.arange(values.shape[1], device=values.device) < ends[:, None]

    def own(each: Tensor) -> Tensor:
        return torch.where(kept.to(each.device), each, torch.zeros_like(each))

    error = None if result.error is None else own(result.error)
    return replace(result, values=own(values), error=error, over="tokens", tokens=tokens, inputs=None)
