"""What the tokens of a text model are called, and which of them are special."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# What tokenizers write for the space before a word: byte-level pair encoding and SentencePiece.
_SPACES = ("Ġ", "▁")
_ROLES = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        tokenizer: the model's, or None: tokens are then called by their number.
        config: the model's configuration, or None.
    """

    tokenizer: Any
    config: Any

    @cached_property
    def roles(self) -> dict[str, int]:
        """The special tokens that are known, by what they do."""
        found: dict[str, int] = {}
        for role in _ROLES:
            # The configuration comes first: it is by its padding that models find the last token of a text.
            for holder in (self.config, self.tokenizer):
                token = getattr(holder, f"{role}_token_id", None)
                if isinstance(token, int) and token >= 0 and role not in found:
                    found[role] = token
        return found

    @property
    def padding(self) -> int | None:
        """The token that fills up the shorter texts of a batch, or None."""
        return self.roles.get("pad")

    @cached_property
    def special(self) -> frozenset[int]:
        """The tokens that are no part of a text; an unknown word is part of it."""
        listed = set(getattr(self.tokenizer, "all_special_ids", ()))
        known = {token for role, token in self.roles.items() if role != "unk"}
        return frozenset((listed | known) - {self.roles.get("unk")})

    @property
    def fillers(self) -> dict[str, int]:
        """The tokens that can stand for a word that is not there, by the words for them."""
        return {role: self.roles[role] for role in ("pad", "mask", "unk") if role in self.roles}

    @cached_property
    def _space(self) -> str:
        """How the tokenizer writes the space before a word; "" where it marks the rest of words by "##"."""
        pieces = self.tokenizer.get_vocab()
        if any(piece.startswith("##") and len(piece) > 2 for piece in pieces):
            return ""
        return next((mark for mark in _SPACES if any(piece.startswith(mark) for piece in pieces)), "")

    def labels(self, ids: Sequence[int]) -> tuple[str, ...]:
        """What the tokens of a text are called; one that continues a word starts with "##"."""
        if self.tokenizer is None:
            return tuple(f"#{token}" for token in ids)
        pieces = self.tokenizer.convert_ids_to_tokens(list(ids))
        named: list[str] = []
        first = True
        for token, piece in zip(ids, pieces, strict=True):
            special = token in self.special or piece is None
            named.append(f"#{token}" if piece is None else piece if special else self._named(piece, first))
            first = special or piece == self._space
        return tuple(named)

    def _named(self, piece: str, first: bool) -> str:
        if not self._space:
            return piece
        if piece == self._space:
            return "␣"
        # Byte-level pieces are bytes written as letters; the tokenizer knows what they spell.
        spelt = self.tokenizer.convert_tokens_to_string([piece]).strip() or piece
        return spelt if first or piece.startswith(self._space) or not spelt[0].isalnum() else f"##{spelt}"
