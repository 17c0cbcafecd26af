import re

import pytest
import torch

from outskirts import checks, score_checks
from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.images import Images
from outskirts.methods import methods
from outskirts.overlap import overlaps
from outskirts.recipe import Recipe
from pictures import folder


def images(name="x", n=40, classes=("cat", "dog"), seed=0, **changes):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 4, 4), generator=g, dtype=torch.uint8)
    labels = torch.arange(n) % len(classes) if classes else torch.full((n,), -1)
    return Images(name, list(classes), changes.pop("labels", labels), **({"pixels": pixels} | changes))


TRAIN, TEST = images("train", seed=1), images("test", seed=2)


def warned(**sets):
    return checks.warnings_of(
        [TRAIN.subset(range(9)), TRAIN.subset(range(9, 40))], TEST, {k: ("near", v) for k, v in sets.items()}
    )


def test_clean_sets_warn_of_nothing():
    assert warned(other=images(seed=3, classes=("car", "boat")), unlabelled=images(seed=4, classes=())) == []


def test_classes_with_the_same_name_are_listed_whatever_the_spelling():
    (line,) = warned(pets=images(seed=3, classes=("Cat, Felis catus", "sea_lion", "DOG")))
    assert line.startswith("pets has 2 of its 3 classes in common with the ID set, by name: Cat, Felis catus, DOG; ")
    assert line.endswith("leave them out with [!Cat,DOG]")
    (line,) = warned(pets=images("p[!fox]", seed=3, classes=("lion", "Dogs")))
    assert line.endswith("by name: Dogs; leave them out with [!fox,Dogs]")
    (line,) = warned(pets=images("p[lion,dog]", seed=3, classes=("lion", "dog")))
    assert line.endswith("leave them out of the brackets")
    (line,) = warned(pets=images(seed=3, n=39, classes=("lion", "dog", "fox"), labels=torch.ones(39, dtype=torch.long)))
    assert "1 of its 1 classes" in line  # only what is there
    assert warned(pets=images(seed=3, n=39, classes=("lion", "dog"), labels=torch.zeros(39, dtype=torch.long))) == []


def test_plurals_split_names_and_names_that_end_in_an_id_class_are_listed():
    sets = {"pets": images(seed=3, classes=("Cats", "tabby cat", "cattle", "cat food"))}
    assert list(overlaps(["cat", "dog"], sets)) == [
        "pets has 1 of its 4 classes in common with the ID set, by name: Cats; leave them out with [!Cats]",
        "pets has 1 of its 4 classes that may overlap with the ID set, for their names end in those of ID classes: "
        "tabby cat (cat); look at them, and leave out what overlaps with [!tabby cat]",
    ]
    assert "by name: Mice, Race_cars;" in next(
        overlaps(["mouse", "racecar"], {"a": images(classes=("Mice", "Race_cars"))})
    )
    assert "by name: n02123045; " in next(overlaps(["tabby"], {"a": images(classes=("n02123045",))}))
    assert (
        list(overlaps(["0", "1"], {"a": images(classes=("test_1", "val_0"))})) == []
    )  # numbers are positions, not names


def test_an_image_list_without_labels_is_compared_by_its_folders(tmp_path):
    folder(tmp_path, ["Cats", "siamese_cat", "fox"], n=1)
    (tmp_path / "a.txt").write_text("Cats/0.png -1\nsiamese_cat/0.png -1\nfox/0.png -1\n")
    same, ends = overlaps(["cat", "dog"], {"a": load(f"imglist:{tmp_path}/a.txt")})
    assert (
        same
        == "a has 1 of its 3 classes in common with the ID set, by name: Cats; leave them out: take their lines out of the list"
    )
    assert "siamese_cat (cat)" in ends


def test_duplicates_are_counted_by_their_pixels():
    copies = images(seed=3, classes=())
    copies.pixels[:3] = TRAIN.pixels[5:8]
    copies.pixels[3] = copies.pixels[2]  # twice in the test set: two images
    copies.pixels[9] = TEST.pixels[0]
    assert warned(copied=copies) == [
        "4 of 40 images of copied are also among the ID training images, pixel by pixel",
        "1 of 40 images of copied are also among the ID test images, pixel by pixel",
    ]
    test = images("test", seed=2)
    test.pixels[0] = TRAIN.pixels[0]
    assert checks.warnings_of([TRAIN.subset(range(9)), TRAIN.subset(range(9, 40))], test, {}) == [
        "1 of 40 images of ID test are also among the ID training images, pixel by pixel"
    ]


def test_files_are_hashed_by_what_they_show(tmp_path):
    folder(tmp_path / "a", ["cat"], n=30)
    (tmp_path / "b" / "fox").mkdir(parents=True)
    for i in range(30):
        (tmp_path / "b" / "fox" / f"{29 - i}.png").write_bytes((tmp_path / "a" / "cat" / f"{i}.png").read_bytes())
    a, b = (sorted((tmp_path / d / c).iterdir()) for d, c in (("a", "cat"), ("b", "fox")))
    on_disk = [images(n=30, classes=(), pixels=None, files=files) for files in (a, b)]
    held = [x.resized((6, 5)) for x in on_disk]
    assert checks.pixel_hashes(on_disk[0]) == checks.pixel_hashes(on_disk[1]) == checks.pixel_hashes(held[1])
    assert list(checks.shared([held[0]], on_disk[1], {})) == [
        "30 of 30 images of ID test are also among the ID training images, pixel by pixel"
    ]


def test_the_shape_of_an_image_is_part_of_it():
    flat, tall = (torch.zeros(1, 3, *s, dtype=torch.uint8) for s in ((2, 8), (8, 2)))
    assert checks.pixel_hashes(images(n=1, pixels=flat)) != checks.pixel_hashes(images(n=1, pixels=tall))


def test_a_set_too_large_to_decode_is_said_not_to_be_looked_at(monkeypatch):
    monkeypatch.setattr(checks, "HASHED", 10)
    files = [x.numpy().tobytes() for x in TRAIN.pixels]
    many = images("many", seed=3, classes=(), pixels=None, files=files)
    small = images("small", n=25, seed=2, classes=())  # the first 25 of the ID test images
    assert warned(many=many, small=small) == [
        "duplicates were not looked for in many (40 images): sets of more than 10 images that are not held in memory are left out",
        "25 of 25 images of small are also among the ID test images, pixel by pixel",
    ]
    lines = list(checks.of_outliers("mine", small, {"many": ("near", many), "test": ("far", TEST)}))
    assert "not looked for in many (40 images)" in lines[-2]
    assert lines[-1].startswith("25 of 40 images of test are also among the outliers")
    assert [
        "ID training (40 images)" in line for line in checks.warnings_of([many], TEST, {"small": ("near", small)})
    ] == [1, 0]


def test_small_sets_are_named_and_empty_ones_refused():
    one, few = images(n=1, seed=3, classes=()), images(n=19, seed=4, classes=())
    lines = warned(one=one, few=few, enough=images(n=20, seed=5, classes=()))
    assert lines[0].startswith("one has one image: ")
    assert lines[1].startswith("few has 19 images: FPR95 and 95 % intervals need at least 20")
    assert len(lines) == 2
    with pytest.raises(OutskirtsError, match=r"the set 'none' \(x\) has no images"):
        checks.not_empty({"none": ("near", images(n=0, classes=()))})


def test_outliers_that_give_a_test_set_away_are_named():
    near, far = load("digits[7-9]"), load("digits[5]")
    lines = list(
        checks.of_outliers("mine", load("digits[5,8]"), {"seven to nine": ("near", near), "five": ("far", far)})
    )
    assert lines[0].startswith("mine trains on classes that seven to nine, five has too")
    n = int((near.labels == 1).sum())
    assert f"{n} of {len(near)} images of seven to nine are also among the outliers that mine trains on" in lines[1]
    assert list(checks.of_outliers("mine", load("digits[0]"), {"five": ("far", far)})) == []


def test_a_set_that_shows_one_picture_is_named():
    one = images(n=25, seed=3, classes=())
    one.pixels[:] = one.pixels[:1]
    assert warned(grey=one) == [
        "all 25 images of grey are one picture: every score is constant there, so it is left out of the means"
    ]
    assert warned(alone=images(n=1, seed=3, classes=()))[0].startswith("alone has one image")


def test_sets_on_disk_are_compared_only_where_decoding_them_is_allowed(tmp_path):
    folder(tmp_path / "a", ["cat"], n=30)
    files = sorted((tmp_path / "a" / "cat").iterdir())
    test = images(n=30, classes=(), pixels=None, files=files)
    known, sets = [test.resized((6, 5))], {"copy": ("near", test)}
    assert not checks.warnings_of(known, test, sets, decode=False)
    assert len(checks.warnings_of(known, test, sets)) == 3
    there = {"copy": ("near", known[0])}
    assert checks.warnings_of(known, known[0], there, decode=False) == checks.warnings_of(known, known[0], there)


def test_a_neighbour_near_the_size_of_a_class_is_warned_of():
    bank = images(n=40, labels=torch.arange(40) // 30)  # 30 cats, 10 dogs
    assert list(score_checks.of_neighbour("score.knn.k", 5, bank)) == []
    (line,) = score_checks.of_neighbour("score.knn.k", 6, bank)
    assert line.startswith("score.knn.k is 6, and class 'dog' has 10 of the 40 images")
    assert line.endswith("take 5 or less: score.knn.k=5")


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        (
            "rmd",
            {},
            r"a covariance of 64 feature dimensions from 56 images of 2 classes, which span 54 of them: .* 96 .* x\.shrinkage=0\.1",
        ),
        ("mahalanobis", {}, "from 56 images of 2 classes"),
        ("mahalanobis", {"shrinkage": 0.1}, ""),
        ("vim", {}, r"a subspace of 64 .* which span 56 of them: .* x\.d=7"),
        ("pytorch_ood", {"detector": "RMD"}, "which span 54 of them"),
        (
            "pytorch_ood",
            {"detector": "GMM"},
            "from the 28 images of class 'cat', which span 27 of them: .* of each class",
        ),
        ("pytorch_ood", {"detector": "KNN"}, ""),
        ("energy", {}, ""),
    ],
)
def test_a_covariance_of_more_dimensions_than_images_is_warned_of_with_numbers(name, settings, told):
    score = find("scores", name)(**settings)
    found = list(score_checks.of_dimensions("x", score, torch.arange(56).numpy() % 2, ["cat", "dog"], 64))
    assert len(found) == bool(told)
    assert not told or re.search(told, found[0])
    labels = torch.arange(400).numpy() % 2
    assert list(score_checks.of_dimensions("x", score, labels, ["cat", "dog"], 64)) == []


def test_a_default_that_finds_too_few_neighbours_names_the_value_to_set():
    recipe, made = Recipe("a", scores=("near=knn",)), [("near", find("scores", "knn")())]
    with pytest.raises(
        OutskirtsError, match=r"score\.near\.k is 100 by default, but there are 40 .* e\.g\. score\.near\.k=10,"
    ):
        score_checks.enough_for_scores(recipe, made, TRAIN)


def test_a_synthesizer_that_needs_more_neighbours_than_there_are_images_is_refused_before_it_is_fitted():
    good = find("synth", "good")
    with pytest.raises(OutskirtsError, match="k of synth=good is 100, but there are 40 training images; give 1 to 40"):
        checks.enough_for("good", good(), TRAIN)
    checks.enough_for("good", good(guidance=("image",)), TRAIN)
    checks.enough_for("good", good(k=40), TRAIN)
    for name, options in (("shuffle", {}), ("synood", {"per_class": 100})):  # neither looks for neighbours
        checks.enough_for(name, find("synth", name)(**options), TRAIN)


def test_what_a_loss_cannot_do_with_the_outliers_of_its_method_is_said_by_name():
    def every(synth, **train):
        return methods(Recipe("a", methods={"mine": {"synth": synth, "train": train}}))

    with pytest.raises(OutskirtsError, match=r"mine: train\.loss=mixoe mixes images, .* synth=vos are features"):
        list(checks.of_losses(every("vos", loss="mixoe")))
    assert list(checks.of_losses(every("mix", loss="mixoe"))) == []
    assert list(checks.of_losses(every("vos", loss="energy_margin"))) == []
    (line,) = checks.of_losses(every("vos", loss="energy_margin", m_in=-20.0))
    assert line.startswith("mine: train.m_in is -20 and train.m_out is estimated")
