"""Bad-OOD's anchors, decoded unguided, on the ID side of the scout and of the training: made once, continued, refused where nothing is decoded."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from outskirts import roundtrips, scout
from outskirts import train as training
from outskirts.cli import main
from outskirts.filter_settings import FilterSettings
from outskirts.methods import methods
from outskirts.plan import plan
from outskirts.run import Run, run
from outskirts.store import Store
from own.tiny import recipe

FOLDER = "3-roundtrip-badood"
SMALL = {"width": 16, "blocks": 1, "model_steps": 4, "decoder_steps": 2, "decoder_channels": (8, 8), "decoder_batch": 8}
BADOOD = {**SMALL, "steps": 2, "strengths": (1.0,), "n_steps": 2, "probe": 20, "artefacts": 10, "batch_size": 8}


@pytest.fixture(scope="module")
def controlled():
    r = dataclasses.replace(
        recipe(),
        classes="0-4",
        near=("digits 9=digits[9]",),
        synth="badood",
        synth_with=BADOOD,
        n_outliers=24,
        seeds=(0,),
        stages=("classifier", "synth", "train:scout", "filter", "train"),
        filter=FilterSettings(band="none"),
        methods={
            "twin": {"of": "badood", "filter": {"calibration": "held_out_classes"}},
            "without": {"of": "badood", "train": {"vae_roundtrip": None}},
        },
    )
    return dataclasses.replace(r, train=dataclasses.replace(r.train, vae_roundtrip=True))


@pytest.fixture(scope="module")
def made(controlled, tmp_path_factory):
    """(folder of the run, what each training was given as ID images), stopped once in the middle of the control images."""
    folder, given, seen = tmp_path_factory.mktemp("runs") / "run", {}, []
    append, train = Store.append, training.train

    def stops(store, outliers):
        if FOLDER in store.folder:
            seen.append(store.folder)
            if len(seen) == 2:
                raise KeyboardInterrupt
        return append(store, outliers)

    def noted(classifier, images, *args, **options):
        given[args[3].relative_to(folder).as_posix()] = images, options.get("roundtrip")
        return train(classifier, images, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "append", stops)
        with pytest.raises(KeyboardInterrupt):
            run(controlled, folder, progress=False)
        assert not (folder / FOLDER / "done.json").exists()
        patch.setattr(scout, "train", noted)
        patch.setattr(training, "train", noted)
        run(controlled, folder, progress=False)
    assert len(seen) == 4  # of three shards, the one that was there is not made again
    return folder, given


def test_they_are_the_outliers_own_anchors_with_their_classes(controlled, made):
    folder, this = made[0], Run(controlled, made[0])
    every, train = methods(controlled), this.inputs.parts["train"]
    assert roundtrips.needed(controlled, every) == {FOLDER: every[0]}
    passed, outliers = (
        Store(folder / f / "store").rows(["id", "source", "label"]).to_pylist() for f in (FOLDER, "3-synth")
    )
    assert passed == outliers
    images = roundtrips.images(this, every[0], every)
    assert images.labels.tolist() == [train.labels[r["source"]].item() for r in sorted(passed, key=lambda r: r["id"])]
    assert images.classes == train.classes
    guided = Store(folder / "3-synth" / "store").images(without=set())[1]
    assert not torch.equal(images.pixels, guided.pixels)


def test_every_scout_and_training_sees_them_on_the_id_side(controlled, made):
    folder, given = made
    images = roundtrips.images(Run(controlled, folder), methods(controlled)[0], methods(controlled))
    for place in ("4-filter/scout/fold-0", "5-train/seed-0", "5-train/noise/seed-0", "5-train/twin/seed-0"):
        assert torch.equal(given[place][1].pixels, images.pixels), place
        assert torch.equal(given[place][1].labels, images.labels), place
    assert given["5-train/without/seed-0"][1] is None
    known, (ids, twin) = images.labels != 2, given["4-filter/twin-twin/fold-0"]
    assert ids.classes == twin.classes == ["0", "1", "3", "4"]
    assert torch.equal(twin.pixels, images.pixels[known])
    logs = [json.loads((folder / f"5-train/{d}seed-0/log.json").read_text())["epochs"] for d in ("", "without/")]
    assert logs[0][0]["loss_id"] != logs[1][0]["loss_id"]


def test_the_scout_says_whether_it_knows_decoded_images(made):
    facts = json.loads((made[0] / "4-filter" / "verdict" / "filter.json").read_text())
    assert 0 <= facts["artefact_auroc"] <= 1
    said = any("tells decoded ID images from real ones" in w for w in facts["warnings"])
    assert said == (facts["artefact_auroc"] > 0.75)


def test_the_plan_counts_them_and_a_done_run_makes_nothing_again(controlled, made, tmp_path):
    alone = dataclasses.replace(controlled, methods={}, floor=False)
    text = "\n".join(plan(alone, tmp_path / "new", until="synth"))
    assert FOLDER in text
    assert "badood, 24 ID images in 3 batches" in text
    before = {p: p.stat().st_mtime_ns for p in made[0].rglob("shard-*")}
    run(controlled, made[0], progress=False)
    assert {p: p.stat().st_mtime_ns for p in made[0].rglob("shard-*")} == before


def test_without_a_decoder_there_is_nothing_to_pass_through(tmp_path):
    words = ["run", "badood_digits", "synth.decoder=none", "train.vae_roundtrip=true", "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "decoder=none makes none an image; leave it out" in done.output
    assert not list((tmp_path / "x").glob("1-*"))
