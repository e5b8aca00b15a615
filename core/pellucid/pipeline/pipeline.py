"""A pipeline: named steps whose results feed later steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.data.references import Reference, looks_like_reference
from pellucid.errors import BadReference, PellucidError, PipelineError
from pellucid.pipeline.plan import Plan, joined, make_plan
from pellucid.pipeline.spec import read_yaml

if TYPE_CHECKING:
    from pellucid.pipeline.progress import Progress
    from pellucid.pipeline.result import PipelineResult
    from pellucid.recorder import States


class Pipeline:
    """Named steps whose results feed later steps, checked as a whole before anything runs.

    A description has the keys `model`, `data`, `target`, `batch_size`, `seed`, `optimize`, `report`, `title` and
    `steps`. A step is `{use: TECHNIQUE, of: STEPS, ...}`, everything else being the technique's parameters:

    * an explainer explains the inputs; `of` another explainer step, it is made of that one's technique (`smoothgrad` of
      `ig`);
    * an evaluator scores explainer steps, one or a list, with `controls` beside them (true, false or a list); one of
      maps scores projector steps;
    * a projector maps the values of one explainer step, or of "recording".

    All explainers run together and share their passes. An explainer explains some of the inputs alone where `at` says
    which, and a projector's `mark` says which are marked on its map: the exemplars of a step, or those that have most
    of something (`{of: recording, most: moved, count: 8}`; see `Choice`).

    With `data: {recording: FOLDER, layer: NAME}` the inputs are the probe of a recorded training run, a map of
    "recording" is one through time, and it is written as an interactive page too, on which each point leads to its
    explanations; `$inputs`, `$labels` and `$examples` stand for the probe in parameters.

    Args:
        description: the mapping that a YAML file holds. Values may be objects: a model, an instance of a technique.
        model: the model, in place of the description's reference.
        inputs: the inputs, as for `explain`, in place of the description's data.
        base: the folder that relative paths of pictures and texts start from.

    Raises:
        PipelineError: with everything that is wrong, naming steps and fields.
    """

    def __init__(
        self, description: Mapping[str, Any], *, model: Any = None, inputs: Any = None, base: str | Path = ""
    ) -> None:
        self.base = Path(base)
        self.description = dict(description)
        self._model = self.description.get("model") if model is None else model
        self._inputs = inputs
        self.states: States | None = None
        problems = self._problems()
        if inputs is None and (unreadable := self._read_recording()):
            # Without the recording, most of what the steps say means nothing.
            raise PipelineError(joined([*problems, unreadable]))
        self.plan: Plan = make_plan(self.description, problems, self._words())

    @classmethod
    def from_yaml(cls, path: str | Path, *, model: Any = None, inputs: Any = None) -> Pipeline:
        """Reads a pipeline from a YAML file; relative paths of pictures start from the file's folder.

        Raises:
            PipelineError: when the file cannot be read, or with everything that is wrong in it.
        """
        return cls(read_yaml(Path(path)), model=model, inputs=inputs, base=Path(path).parent)

    def run(
        self,
        out: str | Path | None = None,
        *,
        progress: bool | Progress | None = None,
        trust: bool = False,
    ) -> PipelineResult:
        """Runs all steps.

        A step that fails loses no other step's result: evaluators go on with the explanations that there are, and what
        has none left is skipped.

        Args:
            out: the folder for the results: a safetensors file for each step, without the inputs; `scores.csv` and
                `scores.json`; the report; and `run.json`, where everything comes from. None writes nothing.
            progress: bars on a terminal (None), always or never; or a function of what runs, rows done and rows known.
            trust: whether weights that need unpickling, which can run any code, may be read.

        Raises:
            SavedFileError: when the folder cannot be written to, before anything runs.
            BadReference, ModelError, InputError, TargetError: when the model or the data cannot be had or used.
            Interrupted: at Ctrl-C; what had finished is in its `results`, and written.
        """
        from pellucid.pipeline.execute import execute

        return execute(self, out, progress=progress, trust=trust)

    @property
    def model(self) -> Any:
        """The model or its reference."""
        return self._model

    @property
    def inputs(self) -> Any:
        """The inputs where they were given as they are, else None."""
        return self._inputs

    @property
    def images(self) -> list[Any]:
        """Where the pictures come from, relative paths from `base` on."""
        data = self.plan.settings.data
        return [] if data is None else [self._placed(spec) for spec in data.images or ()]

    @property
    def texts(self) -> list[str]:
        """The texts, or files of texts, where the data are texts; relative paths start from `base`."""
        data = self.plan.settings.data
        return [] if data is None else list(data.texts or ())

    def _read_recording(self) -> str:
        """Reads the recorded states and takes the probe as inputs; what is wrong with them is returned, or ""."""
        data = self.description.get("data")
        if not isinstance(data, Mapping) or not isinstance(data.get("recording"), (str, Path)):
            return ""
        from pellucid.recorder import load

        try:
            recording = load(self.base / Path(data["recording"]).expanduser())
            self.states = recording.states(str(data.get("layer", "output")), data.get("run"))
            self._inputs = recording.run(data.get("run")).probe.inputs
        except PellucidError as error:
            return f"field 'data.recording': {error}"
        return ""

    def _words(self) -> dict[str, Any]:
        """What stands for the recording's examples in parameters."""
        if self.states is None:
            return {}
        words = {"$inputs": self._inputs}
        if self.states.labels is not None:
            words |= {"$labels": self.states.labels, "$examples": (self._inputs, self.states.labels)}
        return words

    def _placed(self, spec: Any) -> Any:
        if isinstance(spec, str) and looks_like_reference(spec):
            return spec
        return self.base / Path(spec).expanduser() if isinstance(spec, (str, Path)) else spec

    def _problems(self) -> list[str]:
        problems = []
        if self._model is None:
            problems.append("field 'model': missing; expected a reference such as 'torchvision:resnet50', or model=...")
        elif isinstance(self._model, str):
            try:
                Reference.parse(self._model)
            except BadReference as error:
                problems.append(f"field 'model': {error}")
        if self._inputs is None and self.description.get("data") is None:
            problems.append(
                "field 'data': missing; expected {images: [FILE, FOLDER or REFERENCE, ...]}, "
                "{texts: [TEXT or FILE.txt, ...]}, {recording: FOLDER}, or inputs=..."
            )
        return problems
