"""Every technique of this distribution keeps the contract.

`PELLUCID_CONFORMANCE_SEEDS=20 pytest tests/conformance -k seed` looks for false alarms over as many seeds.
"""

import os

import pytest

import pellucid
from pellucid.testing import check_technique, parametrize_with_checks

NAMES = [record.name for record in pellucid.techniques() if record.distribution == "pellucid"]
SEEDS = int(os.environ.get("PELLUCID_CONFORMANCE_SEEDS", "1"))


@parametrize_with_checks(NAMES)
def test_every_technique_keeps_the_contract(check):
    check()


if SEEDS > 1:

    @pytest.mark.parametrize("seed", range(1, SEEDS))
    @pytest.mark.parametrize("name", NAMES)
    def test_no_seed_raises_a_false_alarm(name, seed):
        report = check_technique(name, seed=seed)
        assert report.ok, repr(report)
