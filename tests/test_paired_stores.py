"""Stores of outliers that know their ID images: who may train with pairs of them, and what is said of flagged ones."""

import logging
from dataclasses import replace

import pytest
import torch

from outskirts.errors import OutskirtsError
from outskirts.methods import methods
from outskirts.outlier_sets import made, sources
from outskirts.recipes import sona_digits
from outskirts.run import run
from outskirts.store import Store


def recipe(**changes):
    base = sona_digits.recipe()
    quick = {"fit_classifier": replace(base.fit_classifier, epochs=1), "train": replace(base.train, epochs=1)}
    few = {"n_outliers": 20, "floor": False, "methods": {}, "own": (), "seeds": (0,), "threads": 1}
    return replace(base, **quick, **few, **changes)


@pytest.fixture(scope="module")
def made_by_sona(tmp_path_factory):
    folder, heard = tmp_path_factory.mktemp("sona"), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("outskirts").addHandler(handler)
    # with 10 steps or fewer from its start, the preset guides no sample at all
    preset = {"words": ("5", "6"), "steps": 12, "batch_size": 20, "sega": True}
    run(recipe(synth_with=preset, stages=("classifier", "synth")), folder, progress=False)
    logging.getLogger("outskirts").removeHandler(handler)
    return folder, heard


def test_outliers_without_a_guided_step_are_counted(made_by_sona):
    folder, heard = made_by_sona
    (line,) = [h for h in heard if "flagged" in h]
    notes = Store(folder / "3-synth" / "store").rows(["notes"])["notes"].to_pylist()
    n = sum('"flag"' in note for note in notes)
    assert 0 < n <= 20
    assert line.startswith(f"{n} of 20 outliers are flagged (no guided step")


def test_a_store_pairs_as_the_run_that_made_it_does(made_by_sona, tmp_path):
    folder, _ = made_by_sona
    given = recipe(outliers=f"store:{folder}", classifier=str(folder / "1-classifier"), stages=("train",))
    this = run(given, tmp_path, progress=False)
    (m,) = methods(given)
    ids, _ = made(this, m)
    of = {r["id"]: r["source"] for r in Store(folder / "3-synth" / "store").rows(["id", "source"]).to_pylist()}
    assert torch.equal(sources(this, m, ids), torch.tensor([of[i] for i in ids]))
    assert (tmp_path / "5-train" / "seed-0" / "done.json").is_file()


def test_sources_that_are_rows_of_other_images_are_refused(made_by_sona, tmp_path):
    folder, _ = made_by_sona
    other = recipe(outliers=f"store:{folder}", classifier=str(folder / "1-classifier"), stages=("train",), seed=1)
    with pytest.raises(OutskirtsError, match=r"train\.mi pairs .* are others: the store was made from another id"):
        run(other, tmp_path, progress=False)
