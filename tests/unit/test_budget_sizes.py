"""What a budget may be: a share, a percentage, or a size with its unit."""

from __future__ import annotations

import pytest

from compress.quantization.budgets import bytes_of, unreadable


@pytest.mark.parametrize(
    ("budget", "size"),
    [(0.4, 400), ("40%", 400), ("12.5 %", 125), ("100%", 1000), ("2 kB", 2000), ("0.5kB", 500), ("7 B", 7)],
)
def test_it_is_so_many_bytes_of_a_thousand(budget: float | str, size: int) -> None:
    assert bytes_of(budget, 1000) == size


@pytest.mark.parametrize("budget", ["", "much", "0%", "101%", "0 MB", "-3 MB", "3", "3 mb", "%"])
def test_what_is_none_is_told(budget: str) -> None:
    assert unreadable(budget) == f"`{budget}` is no size"
    with pytest.raises(ValueError, match=r"give a share such as 0\.3 or 30%, or 120 MB"):
        bytes_of(budget, 1000)
