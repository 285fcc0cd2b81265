from __future__ import annotations

import json
import re

import pytest

from fcos_fast.data import Categories

PETS = Categories(("cat", "dog", "parrot"), (17, 18, 90))


def test_labels_are_indices():
    assert [PETS.label_of(name) for name in PETS.names] == [0, 1, 2]
    assert [PETS.label_of_id(i) for i in (17, 18, 90)] == [0, 1, 2]
    assert len(PETS) == 3


def test_default_ids_count_from_one():
    assert Categories(["a", "b"]).ids == (1, 2)


def test_round_trip_through_json():
    assert Categories.from_dict(json.loads(json.dumps(PETS.to_dict()))) == PETS


def test_prints_a_row_per_class():
    rows = [line.split() for line in str(PETS).splitlines()]
    assert rows[0] == ["label", "class", "dataset", "id"]
    assert rows[1:] == [["0", "cat", "17"], ["1", "dog", "18"], ["2", "parrot", "90"]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: PETS.label_of("parot"),
            "unknown class 'parot'; did you mean 'parrot'? Known: cat, dog, parrot",
        ),
        (lambda: PETS.label_of("xyz"), "unknown class 'xyz'; known: cat, dog, parrot"),
        (lambda: PETS.label_of_id(3), "unknown category id 3; known are 17 (cat), 18 (dog), 90 (parrot)"),
        (lambda: Categories(()), "Categories: got no class"),
        (lambda: Categories(("a", "b"), (1,)), "Categories: got 2 names but 1 ids"),
        (lambda: Categories(("a", "a")), "Categories: the name 'a' occurs more than once"),
        (lambda: Categories(("a", "b"), (4, 4)), "Categories: the id 4 occurs more than once"),
    ],
)
def test_errors_list_known_values(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_one_string_is_not_a_list_of_names():
    with pytest.raises(TypeError, match="'cat'"):
        Categories("cat")
