"""Recipes by name and from files."""

from __future__ import annotations

import json

import pytest

from runtime.errors import DataError
from train.recipes import RECIPES, from_dict, load_recipe


def test_round_trip_through_json():
    for recipe in RECIPES.values():
        assert from_dict(json.loads(json.dumps(recipe.to_dict())), "test") == recipe


def test_flags_override_a_recipe():
    recipe = load_recipe("lab2023", {"lr": 1e-3, "epochs": None})
    assert (recipe.lr, recipe.epochs) == (1e-3, 50)


def test_a_file_starts_from_a_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "default"\nlr = 1e-4\n[scheduler]\nprediction_type = "epsilon"\n')
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.lr, recipe.scheduler["prediction_type"]) == ("mine", 1e-4, "epsilon")
    assert recipe.scheduler["beta_schedule"] == "squaredcos_cap_v2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base = "nothing"', "nothing"),
        ('base = "default"\nlearning = 3', "learning"),
        ('base = "default"\nloss = "hinge"', r"loss.*hinge.*mse"),
        ('base = "default"\nlr = -1.0', "'lr' is -1.0"),
        ("network = 'spectral'", "lacks the field 'name'"),
        ("base = ", "cannot be read"),
    ],
)
def test_faulty_files_are_named(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        load_recipe(str(path))


def test_unknown_recipe():
    with pytest.raises(DataError, match=r"no recipe 'best'.*default"):
        load_recipe("best")
