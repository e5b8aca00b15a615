"""What a pipeline's description may say, read from a mapping or from YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pellucid.errors import PipelineError, nearest
from pellucid.pipeline.choice import Choice

if TYPE_CHECKING:
    from yaml import SafeLoader

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
REPORT = "report.html"
_BRANCHES = frozenset({"bool", "str"})
"""What pydantic calls the branches of the unions below, where the name could be a field's."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _chosen(value: Any) -> Any:
    return {"of": value} if isinstance(value, str) else value


def _images(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


class Data(BaseModel):
    """Where the inputs come from: pictures, texts, or the probe of a recorded training run.

    Attributes:
        images: files, folders, patterns, references such as "demo:cat", or PIL images.
        texts: texts, or files "*.txt" with a text on each line.
        recording: the folder that a `Recorder` wrote; the steps may use what it recorded, as "recording".
        layer: the recorded layer that is meant.
        run: which run of the recording; None where there is only one.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    images: Annotated[list[Any], BeforeValidator(_images), Field(min_length=1)] | None = None
    texts: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] | None = None

    recording: Path | None = None
    layer: str = "output"
    run: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Data:
        if sum(one is not None for one in (self.images, self.texts, self.recording)) != 1:
            raise ValueError("expected either images, texts or a recording")
        if self.recording is None and self.model_fields_set & {"layer", "run"}:
            raise ValueError("'layer' and 'run' are of a recording")
        return self


class Settings(BaseModel):
    """Everything of a description but its steps."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Any = None
    data: Data | None = None
    target: Any = None
    batch_size: Annotated[int, Field(strict=True, ge=1)] | Literal["auto"] = "auto"
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    optimize: bool = False
    report: bool | str = True
    title: str = ""

    @property
    def report_name(self) -> str:
        """What the report's file is called; "" where none is written."""
        return self.report if isinstance(self.report, str) else REPORT if self.report else ""


class Step(BaseModel):
    """One step: a technique, the steps that it takes, and its parameters.

    A parameter `$inputs`, `$labels` or `$examples` is the recording's inputs, their labels, or both as training data.

    Attributes:
        use: the technique's name, or an instance.
        of: the steps whose results it takes.
        controls: for an evaluator, whether the controls are scored beside the explanations, or which of them.
        at: for an explainer, which of the inputs it explains; None is all.
        mark: for a projector, which of the inputs are marked on its map.
    """

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    use: Any
    of: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    controls: bool | list[str] = True
    at: Annotated[Choice, BeforeValidator(_chosen)] | None = None
    mark: Annotated[list[Annotated[Choice, BeforeValidator(_chosen)]], BeforeValidator(_several)] = Field(
        default_factory=list
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """The technique's parameters."""
        return dict(self.model_extra or {})

    @property
    def choices(self) -> list[Choice]:
        """What it asks of other steps besides their results."""
        return [*([] if self.at is None else [self.at]), *self.mark]


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a description from a YAML file.

    Raises:
        PipelineError: the file is missing, is no YAML, names a key twice, or is no mapping.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PipelineError(f"the pipeline '{path}' cannot be read: {reason}") from error
    try:
        found = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        where = str(error).replace('in "<unicode string>", line', "at line")
        raise PipelineError(f"'{path}' is no YAML: {' '.join(where.split())}") from error
    if not isinstance(found, dict):
        given = "is empty" if found is None else f"holds no mapping ({type(found).__name__})"
        raise PipelineError(f"'{path}' {given}; expected 'model:', 'data:' and 'steps:'")
    return found


def _loader() -> type[SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML keeps the last of two equal keys; a step that vanishes without a word is worse than an error."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1 and key != "<<"]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice[0]!r} is given twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    return Loader


def parse(given: Mapping[str, Any]) -> tuple[Settings, dict[str, Step], list[str]]:
    """Reads a description as far as it can be read.

    Returns:
        The settings, the steps that are well formed, and what is wrong with the rest.
    """
    problems: list[str] = []
    rest = {str(key): value for key, value in given.items() if key != "steps"}
    try:
        settings = Settings.model_validate(rest)
    except ValidationError as error:
        problems += _told("", error, [*Settings.model_fields, "steps"])
        settings = Settings()
    steps = given.get("steps")
    if not isinstance(steps, Mapping) or not steps:
        found = f"a {type(steps).__name__}" if isinstance(steps, (list, str)) else "missing or empty"
        problems.append(f"field 'steps': {found}; expected a mapping such as {{cam: {{use: grad_cam}}}}")
        return settings, {}, problems
    parsed: dict[str, Step] = {}
    for name, body in steps.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            problems.append(f"step {name!r}: expected a name of letters, digits, '_' and '-'; it names a file, too")
            continue
        try:
            parsed[name] = Step.model_validate({"use": body} if isinstance(body, str) else body)
        except ValidationError as error:
            problems += _told(f"step '{name}', ", error, list(Step.model_fields))
    return settings, parsed, problems


def _told(where: str, error: ValidationError, known: list[str]) -> list[str]:
    """Pydantic's findings, one sentence for each field."""
    told: dict[str, list[str]] = {}
    for problem in error.errors():
        unknown = problem["type"] == "extra_forbidden"
        # Only names of fields: pydantic adds the branch of a union, such as 'bool' or 'constrained-int', to the path.
        path = [str(part) for part in problem["loc"] if unknown or part not in _BRANCHES]
        path = [part for part in path if part.isidentifier() or part.isdecimal()]
        field = ".".join(path[:2])
        if unknown:
            inner = {"data": [*Data.model_fields], "at": [*Choice.model_fields], "mark": [*Choice.model_fields]}
            fields = inner.get(path[0], known)
            said = f"unknown.{nearest(path[-1], fields) or ' Expected one of ' + ', '.join(fields)}"
        elif problem["type"] == "model_type" and {"at", "mark"} & set(path[:1]):
            said = "expected a step's name, or a mapping such as {of: recording, most: moved, count: 8}"
        elif problem["type"] == "model_type":
            example = "{images: [FILE or FOLDER]}" if path == ["data"] else "{use: grad_cam}"
            said = f"expected a mapping such as {example}"
        elif problem["type"] == "value_error":
            said = str(problem["ctx"]["error"])
        elif problem["type"] == "missing":
            said = "missing"
        else:
            said = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
        told.setdefault(field, []).append(said)
    return [
        f"{where}{f'field {field!r}' if field else 'its body'}: {', or '.join(dict.fromkeys(said))}"
        for field, said in told.items()
    ]
