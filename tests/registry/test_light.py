"""The registry and `pellucid list` import nothing heavy."""

import json
import subprocess
import sys

HEAVY = {
    "torch",
    "torchvision",
    "numpy",
    "sklearn",
    "umap",
    "matplotlib",
    "pandas",
    "pydantic",
    "PIL",
    "scipy",
    "skimage",
    "timm",
    "transformers",
}


def heavy_after(code):
    script = f"import json, sys\n{code}\nprint(json.dumps([name for name in {sorted(HEAVY)!r} if name in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_registry_is_light():
    code = "import pellucid; assert pellucid.techniques(); pellucid.technique(pellucid.techniques()[0].name)"
    assert heavy_after(code) == []


def test_list_is_light():
    code = "from pellucid.cli import main\ntry: main(['list'])\nexcept SystemExit as stop: assert stop.code == 0"
    assert heavy_after(code) == []


def test_the_check_sees_what_is_heavy():
    assert heavy_after("import numpy") == ["numpy"]
