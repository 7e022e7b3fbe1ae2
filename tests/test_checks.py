"""Checks of arguments: what is accepted, in which type it comes back, and which error the rest raises."""

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptclf.checks import boolean, choice, device, integer, number, path, python_value


class TestPythonValue:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (np.int8(3), 3),
            (np.float32(0.5), 0.5),
            (np.bool_(True), True),
            (np.str_("ham"), "ham"),
            (np.array(3), 3),
            (torch.tensor(3), 3),
            (torch.tensor([0.5]), 0.5),
            (torch.tensor([[1, 2]]), [[1, 2]]),
            ("ham", "ham"),
            (None, None),
            ((1, 2), (1, 2)),
        ],
    )
    def test_scalars_become_pythons_and_the_rest_stays(self, value: Any, expected: Any) -> None:
        found = python_value(value)
        assert found == expected
        assert type(found) is type(expected)

    def test_torch_objects_that_are_not_tensors_stay(self) -> None:
        assert python_value(torch.float32) is torch.float32


class TestInteger:
    @given(st.integers(-10, 10), st.integers(-10, 10))
    def test_integers_of_at_least_the_bound_come_back_as_int(self, value: int, least: int) -> None:
        for given_value in (value, np.int64(value), torch.tensor(value)):
            if value >= least:
                assert type(integer("n", given_value, least)) is int
                assert integer("n", given_value, least) == value
            else:
                with pytest.raises(ValueError, match=rf"^n is {value}; it must be an integer of at least {least}$"):
                    integer("n", given_value, least)

    @pytest.mark.parametrize("value", [True, np.bool_(False), 2.0, np.float64(2), "3", None, [1], torch.tensor([1, 2])])
    def test_any_other_type_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^n is .*; it must be an integer of at least 1$"):
            integer("n", value, 1)

    def test_none_is_allowed_if_optional(self) -> None:
        assert integer("n", None, optional=True) is None
        assert integer("n", 2, optional=True) == 2
        with pytest.raises(ValueError, match=r"^n is 0; it must be an integer of at least 1 or None$"):
            integer("n", 0, 1, optional=True)
        with pytest.raises(TypeError, match=r"or None$"):
            integer("n", "0", 1, optional=True)

    def test_a_long_value_is_shortened_in_the_message(self) -> None:
        with pytest.raises(TypeError) as caught:
            integer("n", "x" * 10_000)
        assert len(str(caught.value)) < 200


class TestNumber:
    @pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int8(1), torch.tensor(1.0), Fraction(1)])
    def test_numbers_come_back_as_float(self, value: Any) -> None:
        assert type(number("x", value)) is float
        assert number("x", value) == 1.0

    @pytest.mark.parametrize("value", [True, np.bool_(False), "1", None, 1j, [1.0]])
    def test_any_other_type_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^x is .*; it must be a finite number of at least 0$"):
            number("x", value)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -0.1])
    def test_a_value_that_is_not_finite_or_too_small_is_a_value_error(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"^x is .*; it must be a finite number of at least 0$"):
            number("x", value)

    @pytest.mark.parametrize(
        ("bounds", "wrong", "rule"),
        [
            ({"above": 0}, 0, "a finite number above 0"),
            ({"most": 1}, 1.5, "a finite number of at least 0 and of at most 1"),
            ({"above": 0, "most": 1}, 0, "a finite number above 0 and of at most 1"),
            ({"least": -math.inf}, math.nan, "a finite number"),
            ({"least": -math.inf, "most": 2}, 3, "a finite number of at most 2"),
            ({"least": 0.5, "optional": True}, 0.25, "a finite number of at least 0.5 or None"),
        ],
    )
    def test_the_message_states_the_bounds(self, bounds: dict[str, Any], wrong: float, rule: str) -> None:
        with pytest.raises(ValueError, match=f"^x is {wrong}; it must be {rule}$"):
            number("x", wrong, **bounds)

    def test_bounds_themselves_are_allowed_but_for_above(self) -> None:
        assert number("x", 0.0) == 0.0
        assert number("x", 1, most=1) == 1.0
        assert number("x", -5, least=-math.inf) == -5.0
        assert number("x", 1e-300, above=0) == 1e-300

    def test_none_is_allowed_if_optional(self) -> None:
        assert number("x", None, optional=True) is None
        assert number("x", 2, optional=True) == 2.0


class TestChoice:
    def test_a_choice_comes_back_as_str(self) -> None:
        assert type(choice("c", np.str_("a"), ("a", "b"))) is str

    def test_another_string_is_a_value_error_with_the_choices(self) -> None:
        with pytest.raises(ValueError, match=r"^c is 'x'; it must be one of a, b$"):
            choice("c", "x", ("a", "b"))

    @pytest.mark.parametrize("value", [None, 1, ["a"], b"a"])
    def test_any_other_type_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^c is .*; it must be one of a, b$"):
            choice("c", value, ("a", "b"))


class TestBoolean:
    @pytest.mark.parametrize("value", [True, False])
    def test_pythons_and_numpys_are_allowed(self, value: bool) -> None:
        assert boolean("b", value) is value
        assert boolean("b", np.bool_(value)) is value

    @pytest.mark.parametrize("value", [0, 1, "yes", None])
    def test_any_other_type_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^b is .*; it must be True or False$"):
            boolean("b", value)


class TestPath:
    def test_a_str_and_a_path_mean_the_same(self) -> None:
        assert path("folder", "a/b") == path("folder", Path("a/b")) == Path("a/b")

    def test_the_home_directory_is_filled_in(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        assert path("folder", "~/x") == path("folder", Path("~/x")) == tmp_path / "x"

    @pytest.mark.skipif(os.name == "nt", reason="Windows guesses another user's home")
    def test_the_home_of_nobody_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match=r"^folder is '~no-such-user-here/x', whose home directory is unknown"):
            path("folder", "~no-such-user-here/x")

    def test_an_empty_path_is_a_value_error(self) -> None:
        with pytest.raises(
            ValueError, match=r"^folder is ''; it must be a path that is not empty, as a str or a Path$"
        ):
            path("folder", "")

    @pytest.mark.parametrize("value", [None, 3, b"a", ["a"]])
    def test_any_other_type_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^folder is .*; it must be a path that is not empty, as a str or a Path$"):
            path("folder", value)


class TestDevice:
    @pytest.mark.parametrize("value", [None, "cpu", torch.device("cpu")])
    def test_a_name_a_device_and_none_are_allowed(self, value: Any) -> None:
        assert device(value) == torch.device("cpu")

    @pytest.mark.parametrize("value", ["gpu", "cuda:99", ""])
    def test_a_device_that_is_not_there_is_a_value_error_with_those_that_are(self, value: str) -> None:
        with pytest.raises(ValueError, match=rf"^device {value!r} cannot be used here .*; there is cpu"):
            device(value)

    @pytest.mark.parametrize("value", [3.5, ["cpu"], b"cpu"])
    def test_any_other_type_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^device is .*; it must be a name"):
            device(value)
