"""The conformance kit itself: it passes what is right, and catches every seeded bug by name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import pellucid
from pellucid import Attribution, Explainer, Look, ParameterError, Unavailable, UnknownTechnique
from pellucid.testing import Report, check_plugin, check_technique, page, parametrize_with_checks
from pellucid.testing.case import Case
from pellucid.testing.fronts import CHECKS, Trial
from pellucid.testing.laws import Broken
from pellucid.testing.models import SmallNet, copied, randomised
from pellucid.testing.planted import GlyphNet, planted, verify
from pellucid.testing.planted_concepts import rivalling, scenes
from pellucid.testing.planted_concepts import verify as verify_concepts
from pellucid.testing.planted_exemplars import require_boxes
from pellucid.testing.planted_influence import lesson
from pellucid.testing.planted_influence import verify as verify_lesson
from pellucid.testing.state import State, differences, isolated
from pellucid.testing.subject import subject_of

from . import (  # noqa: F401
    mutants_behind,
    mutants_of_claims,
    mutants_of_data,
    mutants_of_maps,
    mutants_of_rules,
    mutants_of_values,
)
from .correct import ALONE, CAUGHT_BY, CORRECT, GradientTimesInput, recorded
from .correct import Path as PathIntegral
from .correct_of_data import CONCEPTS, COPIES, NEAREST, PARTS, PROTOTYPES, UNITS
from .mutants_of_maps import STILL
from .mutants_of_values import PermutedBatch

ROOT = Path(__file__).parents[2]


def instance(cls):
    made = cls()
    object.__setattr__(made, "technique", recorded(cls))
    return made


def trial(subject, sentence, seed=0):
    return Trial(subject, next(law for law in CHECKS if law.sentence == sentence), seed)


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_technique_passes(name):
    report = check_technique(instance(CORRECT[name]))
    assert report.ok, repr(report)
    assert report.count("pass") > 12


@dataclass(frozen=True, eq=False)
class Unlooked(Explainer):
    """Asks for a look, and forgets to yield it."""

    def explain(self, sample):
        seen = Look(at=sample, gradients=["input"])
        return Attribution(seen.gradients["input"])


def test_a_forgotten_yield_is_told():
    with pytest.raises(Broken, match=r"TypeError: .*; `explain` has no `yield`"):
        trial(subject_of(instance(Unlooked)), "answers with what its record names")()


@pytest.mark.parametrize("cls", CAUGHT_BY, ids=lambda cls: cls.__name__)
def test_a_seeded_bug_is_caught_by_name(cls):
    subject = subject_of(instance(cls))
    law = next(law for law in CHECKS if law.sentence == CAUGHT_BY[cls])
    assert not law.excuse(subject)
    with pytest.raises(Broken):
        Trial(subject, law)()


def test_every_check_that_a_technique_can_break_has_a_mutant():
    groups = {"State", "Determinism", "Examples", "Target", "Passes", "Result", "Axioms", "Planted truth",
              "Maps of points", "Maps through time"}  # fmt: skip
    uncaught = {law.sentence for law in CHECKS if law.group in groups} - set(CAUGHT_BY.values())
    # What these hold is the engine's own doing, which no technique can break from within the protocol.
    assert uncaught == {
        "leaves the inputs and the target that it was given as they were",
        "adds no passes in company",
        "refuses a model that does not offer what it needs",
        "says where it comes from",
        "records the classes that it explained",
        "gives a result that can be saved, read and sliced",
        "gives a result that can be drawn",
    }


def test_a_report_names_what_failed_and_can_be_read():
    report = check_technique(instance(PermutedBatch))
    assert isinstance(report, Report)
    assert not report.ok
    assert ALONE in [result.check for result in report.failures]
    assert {status for _, status, _ in report.results} == {"pass", "fail", "skip"}
    assert f"FAIL  {ALONE}: example 0 alone: the values differ" in repr(report)
    assert [check for check, *_ in report.results] == [law.sentence for law in CHECKS]


@dataclass(frozen=True, eq=False)
class Excused(PermutedBatch):
    """Each example gets its neighbour's values, and says so."""

    known_failures: ClassVar[dict[str, str]] = {ALONE: "it is meant as a bug"}


@dataclass(frozen=True, eq=False)
class ExcusedForNothing(GradientTimesInput):
    """Right, and excused all the same."""

    known_failures: ClassVar[dict[str, str]] = {ALONE: "it was once wrong"}


def test_a_known_failure_is_known_and_must_fail():
    known = trial(subject_of(instance(Excused)), ALONE).result()
    assert known.status == "known"
    assert known.detail == "it is meant as a bug"
    passing = trial(subject_of(instance(ExcusedForNothing)), ALONE).result()
    assert passing.status == "fail"
    assert "remove it there" in passing.detail


def test_pytest_gets_strict_expected_failures():
    params = {one.id: one for one in parametrize_with_checks([instance(Excused)]).mark.args[1]}
    excused = params[f"mutant: {ALONE}"]
    (mark,) = excused.marks
    assert (mark.name, mark.kwargs["strict"], mark.kwargs["reason"]) == ("xfail", True, "it is meant as a bug")
    with pytest.raises(Broken):
        excused.values[0]()
    other = params["mutant: keeps to the order of the examples"]
    assert not other.marks
    with pytest.raises(Broken):
        other.values[0]()


def test_what_is_not_available_makes_one_skipped_test():
    record = recorded(GradientTimesInput, requires=("no-such-distribution",))
    with pytest.raises(Unavailable, match="pip install no-such-distribution"):
        check_technique(record)
    (param,) = parametrize_with_checks([record]).mark.args[1]
    assert param.id == "mutant: is available"
    assert param.marks[0].name == "skip"
    assert "pip install no-such-distribution" in param.marks[0].kwargs["reason"]


def test_pytest_s_tests_are_named_by_technique_and_sentence():
    mark = parametrize_with_checks(["saliency"]).mark
    ids = [one.id for one in mark.args[1]]
    assert f"saliency: {ALONE}" in ids
    assert not any("control" in one for one in ids)
    assert len(set(ids)) == len(ids)


def test_names_records_classes_and_instances_are_checked():
    by_name = subject_of("occlusion")
    assert (by_name.name, by_name.kind) == ("occlusion", "explainer")
    assert len(by_name.instances()) == len(by_name.cls.test_instances())
    assert subject_of(by_name.record).cls is by_name.cls
    assert subject_of(GradientTimesInput).record is None
    assert [one.n_steps for one in subject_of(PathIntegral(n_steps=5)).instances()] == [5]
    assert by_name.instances()[0] is not by_name.instances()[0]


@pytest.mark.parametrize(("given", "error"), [("saliencyy", UnknownTechnique), (dict, ParameterError)])
def test_what_is_no_technique_is_refused(given, error):
    with pytest.raises(error):
        check_technique(given)


def test_test_instances_must_be_instances():
    @dataclass(frozen=True, eq=False)
    class Empty(GradientTimesInput):
        """Has no test instances."""

        @classmethod
        def test_instances(cls):
            return []

    with pytest.raises(ParameterError, match="expected a list of at least one instance"):
        subject_of(Empty).instances()


def test_a_plugin_is_checked_by_entry_point_or_package():
    for name in ("features", "pellucid_features"):
        (report,) = check_plugin(name)
        assert report.technique == "activations"
        assert report.ok, repr(report)
    with pytest.raises(UnknownTechnique, match="Did you mean 'features'"):
        check_plugin("featurs")


def test_the_planted_truth_is_causal_and_balanced():
    truth = planted(torch.Generator().manual_seed(3), n=40)
    verify(GlyphNet().eval(), truth)
    assert truth.glyphs.sum(dim=(1, 2)).unique().tolist() == [64]
    assert not (truth.glyphs & truth.distractors).any()
    assert torch.equal(truth.glyphs.transpose(1, 2), truth.distractors)
    with pytest.raises(Broken, match="own model"):
        verify(GlyphNet().eval(), planted(torch.Generator().manual_seed(3), n=40, rivals=True))


def test_two_glyphs_are_each_the_truth_for_their_own_class():
    truth = planted(torch.Generator().manual_seed(5), n=12, rivals=True)
    model = GlyphNet().eval()
    with torch.no_grad():
        own, without = (model(x)[range(12), truth.classes] for x in (truth.images, truth.without(truth.glyphs)))
        rival = model(truth.without(truth.distractors))[range(12), truth.classes]
    assert (without < 0.1 * own).all()
    torch.testing.assert_close(rival, own, rtol=0.05, atol=0.05)


PLANTED = {
    COPIES: {"ntk_influence", "influence_functions", "trak", "tracin", "leave_one_out", "unrolled"},
    NEAREST: {"similar_examples"},
    PROTOTYPES: {"mmd_critic"},
    UNITS: {"maximal_examples"},
    CONCEPTS: {"tcav"},
    PARTS: {"ace"},
    STILL: {"pca", "in_pca", "tsne", "umap", "dynamic_tsne", "random_projection"},
}


@pytest.mark.parametrize("sentence", PLANTED)
def test_planted_truth_finds_its_techniques_by_their_records(sentence):
    law = next(law for law in CHECKS if law.sentence == sentence)
    found = {record.name for record in pellucid.techniques() if record.available and not law.excuse(subject_of(record))}
    assert found >= PLANTED[sentence]
    others = set().union(*(names for other, names in PLANTED.items() if other != sentence))
    assert not found & others


@pytest.mark.parametrize("name", ["Steps", "Nearest", "Stand", "Excited", "Directions", "Parts", "Axes"])
def test_no_seed_raises_a_false_alarm_on_a_correct_technique(name):
    subject = subject_of(instance(CORRECT[name]))
    planted = ("Planted truth", "Maps of points", "Maps through time")
    laws = [law for law in CHECKS if law.group in planted and not law.excuse(subject)]
    assert laws
    for law in laws:
        for seed in (1, 2):
            Trial(subject, law, seed)()


def test_planted_training_data_are_causal():
    case = Case(subject_of("tracin"), seed=4)
    given = lesson(case)
    verify_lesson(given)
    assert (given.trainer.inputs[given.copies] == given.queries).all()
    assert (given.trainer.inputs[given.twins] == given.queries).all()
    assert given.trainer.labels[given.copies].tolist() == [1, 3, 0]
    assert given.trainer.labels[given.twins].tolist() == [2, 0, 1]
    assert not given.wrong.any()
    with pytest.raises(Broken, match="own model"):
        verify_lesson(replace(given, copies=given.twins, twins=given.copies))
    assert int(lesson(case, wrong=4).wrong.sum()) == 4


def test_planted_concepts_are_causal():
    generator = torch.Generator().manual_seed(2)
    images = [scenes(200, generator, certain) for certain in (0, 1, 4, None)]
    verify_concepts(rivalling(), images, 0)
    with pytest.raises(Broken, match="own model"):
        verify_concepts(GlyphNet().eval(), images, 0)
    with pytest.raises(Broken, match="own model"):
        verify_concepts(rivalling(), images, 1)


def test_a_crop_that_is_a_pixel_off_is_seen():
    image = torch.zeros(3, 32, 32)
    image[:, 8:16, 16:24] = 1.0
    require_boxes(torch.tensor([[8, 16, 16, 24]]), image, 0)
    for box in ([9, 16, 17, 24], [8, 15, 16, 23], [0, 0, 32, 32], [16, 8, 24, 16]):
        with pytest.raises(Broken, match="overlaps the glyph's cell"):
            require_boxes(torch.tensor([box]), image, 0)


def test_state_sees_every_change():
    model = Case(subject_of("saliency")).model()

    def changed(change):
        with isolated():
            before = State.of(model)
            change()
            after = State.of(model)
        return [name for part in ("model", "process", "randomness")
                for name in differences(getattr(before, part), getattr(after, part))]  # fmt: skip

    assert changed(lambda: None) == []
    assert changed(lambda: model.bn1.train()) == ["the mode of 'bn1'"]
    assert "buffer bn1.running_mean" in changed(lambda: model.bn1.running_mean.add_(1))
    assert changed(lambda: model.head.bias.requires_grad_(False)) == ["requires_grad of head.bias"]
    assert changed(lambda: setattr(model.head.bias, "grad", torch.ones(4).double())) == ["grad of head.bias"]
    assert changed(lambda: model.register_forward_pre_hook(lambda *_: None)) == ["the hooks of ''"]
    assert changed(lambda: torch.rand(1)) == ["torch's random state"]
    assert changed(lambda: torch.set_default_dtype(torch.float64)) == ["the default type"]
    assert changed(lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: None)) == [
        "hooks on all modules"
    ]
    before = torch.get_rng_state()
    with isolated():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copied_model_is_equal_and_shares_nothing():
    model = randomised(SmallNet().double(), 3)
    twin = copied(model)
    assert [type(part) for part in twin.modules()] == [type(part) for part in model.modules()]
    ours, theirs = twin.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.data_ptr() != theirs[name].data_ptr()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    twin.train()
    twin.head = torch.nn.Identity()
    for part in twin.modules():
        part.register_forward_hook(lambda *_: 1 / 0)
    assert torch.equal(model(x), expected)
    assert not any(part.training for part in model.modules())


@dataclass(frozen=True, eq=False)
class Tallied(GradientTimesInput):
    """Right, and counts its runs."""

    runs: ClassVar[list[int]] = []

    def explain(self, sample):
        """Counts, and explains."""
        self.runs.append(len(sample))
        return (yield from super().explain(sample))


def test_checks_that_only_read_a_result_share_it():
    subject = subject_of(instance(Tallied))
    reading = ("answers with what its record names", "gives every certificate a verdict", "says where it comes from",
               "gives a result that can be saved, read and sliced")  # fmt: skip
    Tallied.runs.clear()
    for sentence in reading:
        trial(subject, sentence)()
    assert Tallied.runs == [3]
    trial(subject, reading[0], seed=1)()
    trial(subject, "keeps to the order of the examples")()
    assert Tallied.runs == [3, 3, 3]


def test_the_page_of_all_checks_is_up_to_date():
    assert (ROOT / "docs" / "conformance.md").read_text() == page(), (
        "docs/conformance.md is out of date; write pellucid.testing.page() to it"
    )


def test_every_sentence_is_unique_and_every_technique_has_many():
    sentences = [law.sentence for law in CHECKS]
    assert len(set(sentences)) == len(sentences)
    for record in pellucid.techniques():
        subject = subject_of(record)
        assert sum(not law.excuse(subject) for law in CHECKS) >= 12, record.name
