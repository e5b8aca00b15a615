"""What the policies of attention in LRP show of a transformer that looks up: `python -m benchmarks.attention`.

A row has eight pairs of a key and a value, and a query at the end; the class is the value whose key is the query's.
Told are, over 200 rows, how often the answer comes first, how often answer and query are the two first, how far the
score falls when the four first positions are replaced by their mean one after the other, and what the checks say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pellucid

KEYS, WIDTH, STEPS = 8, 32, 2500


class Lookup(nn.Module):
    """Two layers of self-attention over rows (B, 9, 24) of one-hot keys, values, queries; it reads the last place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(3 * KEYS, WIDTH, bias=False)
        self.positions = nn.Parameter(torch.randn(KEYS + 1, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, batch_first=True, activation="gelu", dropout=0.0, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, KEYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x) + self.positions)[:, -1])


def rows(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their classes, and where the answer is."""
    keys = torch.stack([torch.randperm(KEYS, generator=generator) for _ in range(n)])
    values = torch.randint(0, KEYS, keys.shape, generator=generator)
    answer = torch.randint(0, KEYS, (n,), generator=generator)
    each = torch.arange(n)
    x = torch.cat([F.one_hot(keys, 3 * KEYS) + F.one_hot(KEYS + values, 3 * KEYS), torch.zeros(n, 1, 3 * KEYS)], dim=1)
    x[each, KEYS, 2 * KEYS + keys[each, answer]] = 1
    return x, values[each, answer], answer


def trained(seed: int) -> Lookup:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Lookup()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(STEPS):
        x, y, _ = rows(128, generator)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    x, y, _ = rows(1000, generator)
    print(f"seed {seed}: accuracy {float((model(x).argmax(1) == y).float().mean()):.3f}")
    return model.eval()


def fall(model: nn.Module, x: Tensor, y: Tensor, order: Tensor, mean: Tensor, most: int = 4) -> float:
    """The mean fall of the score when the first positions are replaced."""
    each, shown, falls = torch.arange(len(x)), x.clone(), []
    with torch.no_grad():
        whole = model(x)[each, y]
        for place in order.T[:most]:
            shown[each, place] = mean[place]
            falls.append(float((whole - model(shown)[each, y]).mean()))
    return sum(falls) / most


def compared(seed: int) -> None:
    model, generator = trained(seed), torch.Generator().manual_seed(99)
    x, y, answer = rows(200, generator)
    mean = rows(2000, generator)[0].mean(0)
    techniques = {f"lrp, attention={one}": pellucid.create("lrp", attention=one) for one in ("taylor", "constant")}
    techniques |= {one: pellucid.create(one) for one in ("input_x_gradient", "integrated_gradients", "deeplift")}
    for name, technique in techniques.items():
        result = pellucid.explain(model, x, technique, target=y, progress=False)
        order = result.values.sum(-1).argsort(dim=1, descending=True)
        first = float((order[:, 0] == answer).float().mean())
        pair = torch.stack([answer, torch.full_like(answer, KEYS)], dim=1).sort(dim=1).values
        both = float((order[:, :2].sort(dim=1).values == pair).all(dim=1).float().mean())
        kept = [f"{check.name} {float(check.value):.2f}" for check in result.checks if check.name.endswith("share")]
        told = f"answer first {first:.2f}, answer and query first {both:.2f}, fall {fall(model, x, y, order, mean):.1f}"
        print(f"  {name:26s} {told}  {', '.join(kept)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in (0, 1):
        compared(seed)
