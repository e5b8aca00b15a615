"""The page on rules shows code that is tested."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_code_on_the_page_is_that_of_the_tests():
    page = (ROOT / "docs" / "rules.md").read_text()
    tested = (ROOT / "tests" / "rules" / "test_ledger.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown = [block for block in blocks if "seen = yield" not in block]
    assert len(shown) == 2
    assert all(block.strip() in tested for block in shown)
