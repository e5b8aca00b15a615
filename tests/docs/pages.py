"""What the tests of the pages share: a page's blocks of code, and the example that they are taken from."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The blocks of a page: the file each is taken from, its language and its text."""
    found = r"(?:<!-- from: (\S+) -->\n)?^```(\w+)\n(.*?)^```$"
    return re.findall(found, page, flags=re.MULTILINE | re.DOTALL)


def example(name: str) -> ModuleType:
    """An example, loaded as the module `example_<name>`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_taken_from_files(page: str) -> None:
    """Asserts that every block is Python and stands word for word in the file that it names."""
    found = blocks(page)
    assert page.count("```") == 2 * len(found)
    for source, language, text in found:
        assert language == "python"
        assert f"\n{text}" in f"\n{(ROOT / source).read_text()}"
