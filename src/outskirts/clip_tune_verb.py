"""`outskirts clip-tune`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from outskirts.errors import OutskirtsError


@click.command("clip-tune")
@click.argument("images")
@click.argument("out", type=click.Path(file_okay=False))
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--clip", metavar="MODEL", help="CLIP model of transformers: a folder, or an id of the Hugging Face Hub.")
@click.option("--words", multiple=True, metavar="LIST", help="Words for negative labels; may be given again.")
@click.option("--outliers", multiple=True, metavar="IMAGES", help="What to tune on; may be given again.")
@click.option("--test", metavar="IMAGES", help="ID test images.  [default: 20 % of IMAGES are set apart]")
@click.option("--near", multiple=True, metavar="IMAGES", help="A near-OOD test set; may be given again.")
@click.option("--far", multiple=True, metavar="IMAGES", help="A far-OOD test set; may be given again.")
@click.option("--classes", help="Some of the classes, e.g. 0-4 or cat,dog.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def clip_tune(images, out, fields, clip, words, outliers, test, near, far, classes, device, quiet):
    """Tune CLIP on outliers (SynOOD) and write a detector that knows IMAGES by the names of their classes.

    \b
    outskirts clip-tune folder:photos/train runs/clip --clip openai/clip-vit-base-patch16 \\
        --words noun.txt --words adj.txt --outliers runs/synood --near other=folder:photos/other --far noise
    outskirts clip-tune 'hf:cifar10[0-4]' runs/clip --clip models/clip --words words/ --outliers folder:made groups=20
    outskirts clip-tune folder:photos runs/clip --clip models/clip --words wordnet --outliers runs/a --outliers runs/b mode=joint

    IMAGES and test sets are image sets by name, test sets with LABEL= in front where they should be called something else. Outliers
    are the store of `outskirts synth` (its folder, or the run's) or images. Word lists are files of one word a line (adj.* holds
    adjectives, any other nouns; or noun:FILE and adj:FILE), folders of noun.* and adj.* files, or wordnet, an installed nltk corpus.

    OUT gets detector/ for `outskirts score`, log.json, and with test sets 6-bench/, for `outskirts report OUT`: NegLabel as it is, with
    either side tuned, and with both. FIELD=VALUE are fields of ClipTuneSettings: `outskirts show clip-tune` lists them.
    """
    given = {"--clip": clip, "--words": words, "--outliers": outliers}
    if missing := [name for name, value in given.items() if not value]:
        raise OutskirtsError(f"clip-tune needs {' and '.join(missing)}; see clip-tune --help for what they take")
    from outskirts import clip_detector
    from outskirts.clip_settings import ClipTuneSettings
    from outskirts.fit_verbs import changed
    from outskirts.inputs import Inputs
    from outskirts.recipe import Recipe

    settings = changed(ClipTuneSettings(), fields, "clip-tune")
    about = {"id": images, "id_test": test, "classes": classes, "near": near, "far": far, "device": device}
    recipe = Recipe("clip-tune", classifier=f"clip:{clip}?template={quote(settings.template)}", **about)
    log = clip_detector.clip_tune(Inputs(recipe, Path(out)), outliers, words, out, settings, progress=not quiet)
    for line in lines(log, Path(out)):
        click.echo(line)


def lines(log: Mapping[str, Any], out: Path) -> Iterator[str]:
    """What a person wants to know at the end: labels, then every variant, the means over seeds."""
    from outskirts.run import read_json

    labels = log["labels"]
    yield f"{labels['negative']} negative labels, {labels['used']} of them have outliers"
    measured = read_json(out / "6-bench" / "rows.json") or []
    columns = {"held-out outliers": log["variants"]}
    columns |= {p: r for p in ("near", "far") if (r := [x for x in measured if x["set"] == f"mean-{p}"])}
    yield f"{'AUROC, mean over seeds':22}" + "".join(f"{name:>20}" for name in columns)
    for name in dict.fromkeys(v["variant"] for v in log["variants"]):
        values = [_mean(rows, name) for rows in columns.values()]
        yield f"{name:22}" + "".join(f"{100 * v:20.1f}" for v in values)
    yield str(out / "detector")


def _mean(rows: Sequence[Mapping], name: str) -> float:
    found = [r.get("auroc", r.get("held_out_auroc")) for r in rows if name in (r.get("variant"), r.get("method"))]
    found = [x for x in found if x is not None]
    return sum(found) / len(found) if found else float("nan")
