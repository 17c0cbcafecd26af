import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from outskirts import bench_verb, benchmarks, boards, imglist, shelf
from outskirts.bench_verb import recipe_of
from outskirts.benchmarks import APPROXIMATION, MATCHES, MISSING, ROLES
from outskirts.cli import main
from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.override import override
from outskirts.pages import published_columns
from outskirts.recipe import Recipe
from pictures import folder

PACK = Path(__file__).parents[1] / "../shared/data"
DREAM_OOD = "fe3c0441e939852a79fe302b55fc52c754e9359aca0fd207d3c76da139d7cc5e"


@pytest.fixture
def own(tmp_path):
    """A benchmark of a few images, all there; and its manifest, to be changed."""
    folder(tmp_path / "train", ["cat", "dog"], n=4)
    folder(tmp_path / "test", ["cat", "dog"], n=3)
    folder(tmp_path / "cars", ["car"], n=5)
    folder(tmp_path / "sea" / "all", ["sea"], n=2)
    cars = imglist.names_hash(f.name for f in (tmp_path / "cars" / "car").iterdir())
    listed = imglist.of_folder(tmp_path / "sea" / "all")
    imglist.write(tmp_path / "sea.txt", listed.paths, [-1, -1])
    sea = imglist.parse(tmp_path / "sea.txt").hash()

    def part(role, label, name, n, **more):
        return {"role": role, "label": label, "images": n, "at": [{"name": name}], "get": "draw it", **more}

    facts = {
        "about": "Tiny.",
        "source": "made here",
        "size": [6, 5],
        "classes": {"n": 2, "sha256": imglist.names_hash(["cat", "dog"])},
        "parts": [
            part("id", "train", "folder:{root}/train", 8),
            part("id_test", "test", "folder:{root}/test", 6),
            part("near", "cars", "folder:{root}/cars", 5, files_sha256=cars),
            part("far", "sea", "imglist:{root}/sea.txt?root={root}/sea/all", 2, list_sha256=sea),
        ],
    }

    def write(published=None, **parts):
        changed = [p | parts.get(p["label"], {}) for p in facts["parts"]]
        (tmp_path / "tiny.json").write_text(json.dumps(facts | {"published": published, "parts": changed}))
        return f"{tmp_path}/tiny.json"

    write()
    return write


def states(name, root, **options):
    return {p.label: (p.state, p.why) for p in benchmarks.load(name, root, **options).parts}


def test_every_part_that_is_what_the_manifest_says_matches(own, tmp_path):
    found = benchmarks.load(own(), tmp_path)
    assert found.matches
    assert {p.label: p.found for p in found.parts} == {"train": 8, "test": 6, "cars": 5, "sea": 2}
    why = {p.label: p.why for p in found.parts}
    assert why["cars"] == "by the names of its files; what is in the files was not hashed"
    assert why["sea"] == "by the list of its files and labels; what is in the files was not hashed"
    assert why["train"] == "by its class list and count"


def test_a_count_alone_is_no_match_and_neither_is_what_nothing_is_known_of(own, tmp_path):
    found = states(own(cars={"files_sha256": None}), tmp_path)
    assert found["cars"][0] == APPROXIMATION  # another hash
    own()
    facts = json.loads((tmp_path / "tiny.json").read_text())
    for p in facts["parts"]:
        p.pop("files_sha256", None)
        if p["label"] == "sea":
            p["images"] = None
            del p["list_sha256"]
        if p["label"] == "train":
            del p["images"]
    (tmp_path / "tiny.json").write_text(json.dumps(facts))
    found = states(f"{tmp_path}/tiny.json", tmp_path)
    assert found["cars"] == (APPROXIMATION, benchmarks.COUNTED)
    assert found["sea"] == (APPROXIMATION, benchmarks.UNKNOWN)
    assert found["train"] == (MATCHES, "by its class list; how many images it should have is not known")
    (tmp_path / "cars" / "car" / "0.png").rename(tmp_path / "cars" / "car" / "0b.png")
    assert "their hash differs" in states(own(), tmp_path)["cars"][1]


def test_another_count_or_hash_is_an_approximation_that_says_why(own, tmp_path):
    name = own(cars={"images": 1700}, sea={"list_sha256": "0"})
    found = states(name, tmp_path)
    assert found["cars"] == (APPROXIMATION, "5 images, the benchmark has 1,700")
    assert found["sea"][0] == APPROXIMATION
    assert "their hash differs" in found["sea"][1]
    assert found["test"][0] == MATCHES
    assert not benchmarks.load(name, tmp_path).matches


def test_a_part_that_is_not_there_is_missing_with_how_to_get_it(own, tmp_path):
    (tmp_path / "sea" / "all" / "sea" / "1.png").unlink()
    (tmp_path / "cars").rename(tmp_path / "elsewhere")
    found = {p.label: p for p in benchmarks.load(own(), tmp_path).parts}
    assert str(found["cars"]) == f"missing: no folder {tmp_path}/cars; to get it: draw it"
    assert found["sea"].why.startswith("1 of 2 images of ")
    assert found["sea"].name is None


def test_id_images_of_another_class_list_are_not_taken(own, tmp_path):
    (tmp_path / "train" / "dog").rename(tmp_path / "train" / "fox")
    state, why = states(own(), tmp_path)["train"]
    assert state == MISSING
    assert "has another class list than the benchmark" in why
    folder(tmp_path / "test", ["rat"])
    assert states(own(), tmp_path)["test"][0] == MISSING


def test_without_training_images_the_test_images_are_no_match(own, tmp_path):
    (tmp_path / "train").rename(tmp_path / "gone")
    found = benchmarks.load(own(), tmp_path)
    assert found.fields()["id"] == f"folder:{tmp_path}/test"
    assert found.fields()["id_test"] is None
    assert "no ID training images" in next(p.why for p in found.parts if p.role == "id_test")


def test_hub_parts_are_taken_only_where_downloads_are_allowed(own, tmp_path):
    name = own(cars={"at": [{"name": "folder:{root}/no"}, {"name": "torchvision:SVHN:test", "why": "other pixels"}]})
    assert states(name, tmp_path)["cars"][0] == MISSING
    assert states(name, tmp_path, download=True)["cars"] == (APPROXIMATION, "other pixels")
    for at, state in (("torchvision:SVHN:test", MATCHES), ("hf:someone/cars", APPROXIMATION)):
        name = own(cars={"at": [{"name": at}]})
        assert states(name, tmp_path, download=True)["cars"][0] == state


def test_a_recipe_takes_its_sets_from_a_benchmark(own, tmp_path):
    text = f"{own()}?root={tmp_path}"
    recipe = override(Recipe("mine", near=("x=noise",), classes="0-3"), ["scores=msp", f"benchmark={text}"])
    assert recipe.id == f"folder:{tmp_path}/train"
    assert recipe.id_test == f"folder:{tmp_path}/test"
    assert recipe.near == (f"cars=folder:{tmp_path}/cars",)
    assert recipe.far == (f"sea=imglist:{tmp_path}/sea.txt?root={tmp_path}/sea/all",)
    assert (recipe.size, recipe.classes, recipe.benchmark) == ((6, 5), None, text)
    assert benchmarks.of_recipe(recipe).matches
    for change in ("near=noise", "classes=0", "id_test=digits", f"far={recipe.far[0]},noise"):
        assert not benchmarks.of_recipe(override(recipe, [change])).matches, change
    assert override(recipe, ["benchmark=none"]).benchmark is None


def test_what_is_missing_is_left_out_of_the_recipe_and_without_any_it_is_an_error(own, tmp_path):
    (tmp_path / "cars").rename(tmp_path / "elsewhere")
    recipe = benchmarks.apply(Recipe("mine"), f"{own()}?root={tmp_path}")
    assert recipe.near == ()
    (tmp_path / "sea.txt").unlink()
    with pytest.raises(
        OutskirtsError,
        match=r"2 of 4 parts are missing below .*: cars, sea; near OOD 'cars' is missing: .*; to get it: draw it; .* --root DIR or benchmark=.*tiny\.json\?root=DIR",
    ):
        benchmarks.apply(Recipe("mine"), f"{own()}?root={tmp_path}")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("cifar", "no benchmark 'cifar', did you mean 'cifar10'"),
        ("cifar10?rot=x", "has the option 'rot'; it takes root=DIR and download=true"),
        ("cifar10?download=yes", "download is true or false"),
        ("nowhere.json", "cannot be read as a benchmark's manifest"),
        (
            "cifar10?root=nowhere",
            r"10 of 10 parts .* below nowhere: CIFAR-10 train, .* ID test 'CIFAR-10 test' is missing: no nowhere/benchmark_imglist",
        ),
    ],
)
def test_bad_names_are_one_line(text, error):
    with pytest.raises(OutskirtsError, match=error) as e:
        benchmarks.apply(Recipe("mine"), text)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", benchmarks.names())
def test_manifests_hold_what_the_code_reads(name):
    facts = benchmarks.manifest(name)
    assert set(facts) <= {"about", "source", "root", "size", "published", "classes", "parts"}
    keys = {"role", "label", "images", "at", "get", "note", "list_sha256", "names_sha256"}
    keys |= {"files_sha256", "file_sha256"}
    assert all(set(p) <= keys for p in facts["parts"])
    assert {p["role"] for p in facts["parts"]} <= set(ROLES)
    assert {"id_test", "far"} <= {p["role"] for p in facts["parts"]}
    labels = [p["label"] for p in facts["parts"]]
    assert len(set(labels)) == len(labels)
    if (
        facts.get("published") and "Never a match" not in facts["about"]
    ):  # rows stand beside ours where all is bound by a hash
        assert all(any(k.endswith("sha256") for k in p) for p in facts["parts"] if p["role"] in ("near", "far"))
    for p in facts["parts"]:
        for place in p["at"]:
            assert place["name"].partition(":")[0] in ("imglist", "folder", "parquet", "hf", "torchvision")
    if names := facts["classes"].get("names"):
        assert imglist.names_hash(names) == facts["classes"]["sha256"]
        assert len(names) == facts["classes"]["n"]
    assert all(s == MISSING for s, _ in states(name, "nowhere").values())
    if not name.startswith("pack"):  # a command or an address, not a name alone
        assert all(re.search(r"https?://|download=true", p["get"]) for p in facts["parts"])


def test_openood_s_script_is_said_to_bring_what_it_brings():
    for name in ("imagenet1k", "imagenet200", "imagenet100"):
        get = {p["role"]: p["get"] for p in benchmarks.manifest(name)["parts"]}
        assert get["id"].startswith("ILSVRC2012_img_train.tar from https://image-net.org/download-images")
    get = {p["label"]: p["get"] for p in benchmarks.manifest("cifar10")["parts"]}
    assert get["TinyImageNet"].endswith("--contents datasets --dataset_mode dataset --datasets tin --save_dir {root}")


def test_a_benchmark_that_can_never_match_says_so_and_shows_its_published_rows(tmp_path):
    folder(tmp_path / "places365", ["test_256"])
    places = next(p for p in benchmarks.load("cifar100-papers", tmp_path).parts if p.label == "Places365")
    assert str(places).startswith("approximation: the papers draw 2,000 images of Places365 and do not say which")
    text = shelf.benchmark_text("cifar100-papers", ["root=nowhere"])
    assert "Never a match as a whole" in text
    assert (
        "5 published rows are never printed beside yours: no hash tells whether the images of Places365, LSUN-R, iSUN"
        in text
    )
    # GOOD, Table 2
    assert "GOOD (128 px) / unified, transductive (likely) †: AUROC 94.68, fpr95 as published 19.50" in text


def test_rows_stand_only_beside_the_images_that_they_were_measured_on(own, tmp_path, monkeypatch):
    name = own("cifar10")
    text = shelf.benchmark_text(name, [f"root={tmp_path}"])
    assert (
        "61 published rows are never printed beside yours: its class list is not that of the benchmark cifar10" in text
    )
    assert benchmarks.load(name, tmp_path).matches
    assert benchmarks.load(name, tmp_path).published() == []
    packaged = json.loads((tmp_path / "tiny.json").read_text())
    monkeypatch.setattr(boards, "boards", lambda: {"cifar10": packaged})
    assert len(benchmarks.load(name, tmp_path).published()) == 61
    name = own("cifar10", cars={"images": 4, "files_sha256": "0"})
    barred = dict.fromkeys(
        ("standard", "full-spectrum"), "no part of it has the count and hash of cars in the benchmark cifar10"
    )
    assert benchmarks.load(name, tmp_path).barred == barred
    packaged["parts"].pop()
    assert benchmarks.load(own("cifar10"), tmp_path).barred["standard"] == "the benchmark cifar10 has no part like sea"
    assert "no packaged benchmark has rows of that name" in benchmarks.load(own("cifar"), tmp_path).barred["standard"]


def test_full_spectrum_rows_that_never_match_are_said_to(tmp_path):
    text = shelf.benchmark_text("imagenet200", ["root=nowhere"])
    assert "55 published rows are printed beside yours where every part matches" in text
    assert (
        "full-spectrum rows are never printed beside yours: no hash tells whether the images of ImageNet-V2, ImageNet-C"
        in text
    )
    text = shelf.benchmark_text("imagenet1k", ["root=nowhere"])
    assert "full-spectrum rows are printed beside yours where every part, shifted ID too, matches" in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"about": "a",\n "source" 3}', "line 2, column 11 is not JSON: Expecting ':' delimiter"),
        ("[]", "it is [], it takes an object with about, source, classes, parts"),
        ('{"about": "a", "source": "b", "parts": []}', "it has no 'classes'"),
        (
            '{"about": "a", "source": "b", "classes": {"n": "2", "sha256": ""}, "parts": []}',
            "'n' of its 'classes' is \"2\", it takes a whole number",
        ),
        ({"get": None}, "'get' of part 3 (cars) is null, it takes a text"),
        ({"images": "5"}, "'images' of part 3 (cars) is \"5\", it takes a whole number"),
        ({"role": "nearby"}, "part 3 (cars) has the role 'nearby', accepted: id, "),
        ({"at": [{"name": "digits"}]}, "part 3 (cars) is at 'digits', accepted: imglist:, "),
    ],
)
def test_a_manifest_that_lacks_something_is_told_what_in_words(own, tmp_path, text, told):
    path = Path(own(cars=text if isinstance(text, dict) else {}))
    if isinstance(text, str):
        path.write_text(text)
    with pytest.raises(OutskirtsError, match=re.escape(told)) as e:
        benchmarks.load(str(path), tmp_path)
    assert "Error" not in str(e.value)
    assert "\n" not in str(e.value)


def test_training_images_of_one_s_own_keep_the_test_sets_and_are_no_match(own, tmp_path):
    folder(tmp_path / "mine", ["cat", "dog"], n=2)
    given = {"classifier": "c", "id": None, "near": (), "far": (), "shifted": (), "scores": (), "root": str(tmp_path)}
    recipe = recipe_of(train=str(tmp_path / "mine"), benchmark=own(), **given)
    assert (recipe.id, recipe.id_test) == (f"folder:{tmp_path}/mine", f"folder:{tmp_path}/test")
    assert {p.role: p.state for p in benchmarks.of_recipe(recipe).parts if p.role.startswith("id")} == {"id": APPROXIMATION, "id_test": MATCHES}  # fmt: skip
    (tmp_path / "train").rename(tmp_path / "gone")
    recipe = recipe_of(train=str(tmp_path / "mine"), benchmark=own(), **given)
    assert {p.role: p.state for p in benchmarks.of_recipe(recipe).parts if p.role.startswith("id")} == {"id": MISSING, "id_test": MATCHES}  # fmt: skip
    assert not benchmarks.of_recipe(recipe).matches


def test_what_is_shown_of_good_cifar10_on_a_benchmark_has_a_diffusion_model_of_its_classes():
    ten = benchmarks.manifest("pack-cifar10")["classes"]
    pages = bench_verb.TEXT + (Path(__file__).parents[1] / "docs" / "start.md").read_text()
    shown = re.findall(r"good_cifar10 benchmark=(\S+)(.*)", pages)
    assert len(shown) == 2
    assert all("diffusion=fit" in more or benchmarks.manifest(name)["classes"] == ten for name, more in shown)


def test_show_takes_a_manifest_of_one_s_own(own, tmp_path):
    for words in ([own(), f"root={tmp_path}"], [f"{own()}?root={tmp_path}"]):
        result = CliRunner().invoke(main, ["show", *words])
        assert result.exit_code == 0, result.output
        assert "near OOD      cars" in result.stdout
        assert "matches" in result.stdout
    result = CliRunner().invoke(main, ["show", f"{tmp_path}/no.json"])
    assert result.exit_code == 2
    assert "cannot be read as a benchmark's manifest" in result.stderr


def test_imagenet100_is_bound_to_the_list_of_dream_ood(tmp_path):
    facts = benchmarks.manifest("imagenet100")
    assert facts["classes"]["sha256"] == DREAM_OOD
    folder(tmp_path / "imagenet100" / "val", facts["classes"]["names"], shape=(1, 1), n=1)
    found = {p.role: p for p in benchmarks.load("imagenet100", tmp_path).parts}["id_test"]
    assert found.why.startswith("100 images, the benchmark has 5,000")
    val = tmp_path / "imagenet100" / "val"
    (val / facts["classes"]["names"][0]).rename(val / "n00000000")
    found = {p.role: p for p in benchmarks.load("imagenet100", tmp_path).parts}["id_test"]
    assert found.state == MISSING
    assert "99 of 100 are shared" in found.why


@pytest.mark.skipif(not PACK.is_dir(), reason="no image pack beside this checkout")
def test_the_pack_matches_and_is_what_the_recipe_measures_on(monkeypatch):
    for name in ("pack-cifar10", "pack-cifar100"):
        found = benchmarks.load(name, PACK)
        assert found.matches, [str(p) for p in found.parts]
        assert benchmarks.published(name) == []
    monkeypatch.chdir(Path(__file__).parents[1])
    ours, recipe = benchmarks.load("pack-cifar10").fields(), find("recipes", "good_cifar10")()
    assert {k: ours[k] for k in ("id", "id_test", "near", "far")} == {
        k: getattr(recipe, k) for k in ("id", "id_test", "near", "far")
    }


def test_published_rows_are_marked_and_have_their_source():
    rows = benchmarks.published("cifar10")
    msp = next(r for r in rows if (r["training"], r["score"]) == ("CrossEntropy", "MSP"))
    # OpenOOD's leaderboard: 88.03 +- .25 near, 90.73 +- .43 far
    assert [msp[k] for k in ("near_auroc", "near_auroc_sd", "far_auroc", "far_auroc_sd")] == [
        0.8803,
        0.0025,
        0.9073,
        0.0043,
    ]
    assert all(r["published"] and "leaderboard" in r["source"] for r in rows)
    assert any(r["real_outliers"] for r in rows)
    good = {r["score"]: r for r in benchmarks.published("imagenet100") if r["training"] == "GOOD"}
    assert {s: r["all_auroc"] for s, r in good.items()} == {"unified, transductive †": 0.963, "Energy": 0.9281}
    assert "† GOOD's unified score reads its weight and range from the test set itself" in good["Energy"]["source"]
    columns = published_columns(benchmarks.published("imagenet100"))
    assert columns["all_fpr95_published"] == "fpr95 as published, all"
    assert "all_fpr95_id" not in columns  # which class is positive is not certain
    assert benchmarks.published("imagenet200", "full-spectrum") != benchmarks.published("imagenet200")
    for name in ("imagenet200", "imagenet1k"):  # disputed: OpenOOD issue 307
        assert not [r for r in benchmarks.published(name) if r["score"] == "CombOOD"]
    shares = [v for r in rows for k, v in r.items() if isinstance(v, float)]
    assert all(0 <= v <= 1 for v in shares)
