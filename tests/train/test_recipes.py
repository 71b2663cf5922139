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
        ('base = "default"\nlr = "fast"', r"'lr' is 'fast'; expected a number"),
        ('base = "default"\nepochs = 2.5', r"'epochs' is 2.5; expected a whole number"),
        ('base = "default"\nepochs = true', r"'epochs' is True; expected a whole number"),
        ('base = "default"\ncompile = 1', r"'compile' is 1; expected true or false"),
        ('base = "default"\nscheduler = 3', r"'scheduler' is 3; expected a table"),
        ('base = "default"\nlr = nan', r"'lr' is nan; it must be above 0"),
        ('base = "default"\nlr = inf', r"'lr' is inf; it must be above 0"),
        ('base = "default"\nmin_snr_gamma = -1', r"'min_snr_gamma' is -1; it must be 0 or more"),
        ('base = "default"\nmix_share = 0.0', r"'mix_share' is 0.0; it must be above 0 and below 1"),
        ('base = "default"\nvalidation_fraction = 1.0', r"'validation_fraction' is 1.0; it must be above 0 and below 1"),
        ('base = "default"\nmasks = 1.5', r"'masks' is 1.5; it must be from 0 to 1"),
        ('base = "default"\ncoupling = "nearest"', r"'coupling' is 'nearest'; choose independent, shift"),
        (
            'base = "surrogate"\ncoupling = "shift"',
            r"'coupling' is 'shift', which is for denoisers of metasurfaces; leave it 'independent'",
        ),
        ('base = "digits"\ncoupling = "shift"', r"'coupling' is 'shift', which is for denoisers of metasurfaces"),
        ('base = "default"\nmasks = 0.95', r"'masks' and 'condition_dropout' are 0.95 and 0.1; together at most 1"),
        ('base = "surrogate"\ntarget_noise = 0.1', r"'target_noise' is 0.1, which is for denoising"),
        ('base = "surrogate"\nmin_snr_gamma = 5', r"'min_snr_gamma' is 5, which is for denoising"),
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
