"""Memoized factories."""

import pytest

from jaxrl.types import memoize

made = []


@memoize
def factory(a, b=2, **options):
    made.append((a, b, options))
    return object()


def test_equal_arguments_are_one_record_however_they_are_passed():
    first = factory(1)
    assert factory(1, 2) is first
    assert factory(a=1, b=2) is first
    assert factory(1, b=2) is first
    assert factory(1, 3) is not first
    assert factory(1, c=0) is not first
    assert factory(1, c=0) is factory(1, 2, c=0)


@pytest.mark.parametrize(
    "arguments, name",
    [({"a": [1]}, "a"), ({"a": 1, "c": {}}, "options"), ({"a": {"k": 1}}, "a"), ({"a": 1, "b": {}}, "b")],
)
def test_what_cannot_be_hashed_is_named_with_the_remedy(arguments, name):
    with pytest.raises(TypeError, match=rf"factory: argument {name} = .* must be hashable.*Pass a tuple"):
        factory(**arguments)


def test_the_factorys_own_errors_come_through():
    with pytest.raises(TypeError, match="missing a required argument"):
        factory()
