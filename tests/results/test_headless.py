"""Plots need no display, and touch no state of matplotlib's."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import sys
import torch
from pellucid.results import Attribution, Scores
assert not {"matplotlib", "pandas"} & set(sys.modules), "importing the results imports what only plots need"
result = Attribution(torch.randn(2, 3, 3), over="layer4", inputs=torch.rand(2, 3, 9, 9))
figure = result.plot()
figure.savefig(sys.argv[1])
result._repr_html_()
Scores.single(metric="m", explanation="e", values=torch.rand(3), better="higher").plot()
assert "matplotlib.pyplot" not in sys.modules
assert figure._repr_png_().startswith(b"\\x89PNG")
"""


def test_figures_are_drawn_without_a_display_and_without_pyplot(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / "figure.png")],
        env=clean | {"MPLBACKEND": "qtagg"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 2000
