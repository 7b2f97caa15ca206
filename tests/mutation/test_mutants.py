"""The lists of the purgatory's mutants: a line that fits no source any more says nothing, and looks like a reason."""

from __future__ import annotations

from tests.mutation.mutants import by_hand, equivalents, mutants


def test_what_is_called_equivalent_is_a_mutant_of_todays_sources() -> None:
    drawn = {one.key for one in mutants()}
    assert [key for key in equivalents() if key not in drawn] == []


def test_each_fault_by_hand_changes_a_line_of_todays_sources() -> None:
    faults = by_hand()
    assert len(faults) >= 28
    assert all(one.old.strip() != one.new.strip() for one in faults)
