"""The catalogue of control packs agrees with itself, and checks judge what they say."""

from __future__ import annotations

import typing

import pytest

from meshguard.control.packs.catalogue import PACKS, pack_of
from meshguard.control.packs.data_checks import holds_account_numbers
from meshguard.control.packs.judge import CHECKS
from meshguard.control.settings.configuration import Configuration
from meshguard.fields.documents import FieldRuleDocument
from meshguard.telemetry.controls import TESTS


def test_every_control_names_checks_and_tests_that_exist_and_every_check_is_used() -> None:
    used: set[str] = set()
    asked: set[str] = set()
    for pack in PACKS:
        ids = [control.id for control in pack.controls]
        assert len(ids) == len(set(ids)), pack.name
        for control in pack.controls:
            assert control.checks or control.request, control.id
            used |= set(control.checks)
            asked |= set(control.request)
    assert used == set(CHECKS)
    assert asked == set(TESTS)


def test_a_configuration_may_name_each_pack_and_no_other() -> None:
    (names,) = typing.get_args(Configuration.model_fields["packs"].annotation)
    assert set(typing.get_args(names)) == {pack.name for pack in PACKS}
    with pytest.raises(KeyError):
        pack_of("pci-dss-3")


@pytest.mark.parametrize(
    ("select", "is_one"),
    [
        ("$.payment.card_number", True),
        ("$.cardNumber", True),
        ("$..pan", True),
        ("$.items[*].primaryAccountNumber", True),
        ("$.accounts[*].cc_num", True),
        ("$.company", False),
        ("$.pancake", False),
        ("$.card.holder", False),
        ("$.span", False),
    ],
)
def test_account_numbers_are_told_by_their_names(select: str, is_one: bool) -> None:
    rule = FieldRuleDocument.model_validate({"id": "f", "paths": ["/x"], "on": "response", "select": select, "mask": "card"})
    assert holds_account_numbers(rule) is is_one
