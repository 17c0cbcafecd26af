"""`outskirts filter`: the filter on the outliers of a recipe, of a run, or of any store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from outskirts.errors import OutskirtsError
from outskirts.recipe import FILTER_STAGES, STAGES, Recipe


@click.command("filter")
@click.argument("outliers")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--classifier", help="Of a store: the classifier of its ID classes, a folder or a name.")
@click.option("--id", metavar="IMAGES", help="Of a store: the ID images that the classifier was trained on.")
@click.option("-o", "--out", type=click.Path(file_okay=False), help="Folder of the run.  [default: runs/RECIPE]")
@click.option(
    "--redo",
    metavar="STAGE",
    help="filter: again, by the scout that is there; train:scout: by a new one. What was trained afterwards is removed.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan (counts, steps, estimated time) and stop.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def filter_(outliers, fields, classifier, id, out, redo, dry_run, quiet):
    """Keep the outliers that are neither like ID images nor far from them, by the calibrated word of a scout detector.

    \b
    outskirts filter quickstart --out runs/f
    outskirts filter runs/q
    outskirts filter runs/q filter.band=low filter.n_keep=300 --redo filter
    outskirts filter runs/q filter.calibration=given filter.images=folder:ood_val
    outskirts filter runs/q/3-synth/store --classifier runs/q/1-classifier --id 'digits[0-6]' --out runs/f

    OUTLIERS is a recipe, the folder of a run, or a store of any synthesizer, for which --classifier and --id are needed. The
    scout trains against all outliers as train.* says; its score is calibrated to P(ID) on held-out ID images and on OOD images
    (filter.calibration). Every outlier keeps its verdict, in 4-filter and in the store; none is deleted.
    """
    from outskirts.override import override

    folder, last = None, "filter"
    if (Path(outliers) / "store.json").is_file():
        chosen, last = of_store(outliers, classifier, id), None
    elif classifier or id:
        raise OutskirtsError(
            f"--classifier and --id are for a store, and {outliers} is none; write FIELD=VALUE, e.g. classifier=DIR"
        )
    else:
        from outskirts.run import load_run

        is_run = (Path(outliers) / "run.json").is_file()
        chosen, folder = (
            (with_filter(load_run(outliers)), outliers) if is_run else (with_filter(_recipe(outliers)), None)
        )
    chosen = override(chosen, fields)
    folder = out or folder or str(Path("runs") / chosen.name)
    if dry_run:
        from outskirts.plan import plan

        lines = plan(chosen, folder, until=last)
    else:
        from outskirts.run import run

        lines = told(run(chosen, folder, until=last, redo=redo, progress=not quiet).folder)
    for line in lines:
        click.echo(line)


def with_filter(recipe: Recipe) -> Recipe:
    """The recipe with the stages of the filter."""
    return replace(recipe, stages=tuple(s for s in STAGES if s in {*recipe.stages, *FILTER_STAGES}))


def of_store(folder: str, classifier: str | None, id: str | None) -> Recipe:
    """A recipe that filters the outliers of a store, and nothing else."""
    if classifier is None or id is None:
        raise OutskirtsError(
            f"{folder} is a store alone; give --classifier and --id, the ID images by name, or the folder of the run that made it"
        )
    stages = (*FILTER_STAGES, "report")
    about = f"The outliers in {folder}, filtered."
    return Recipe("filter", about, id=id, classifier=classifier, outliers=f"store:{folder}", floor=False, stages=stages)


def told(folder: Path) -> Iterator[str]:
    """A line for each verdict of a run."""
    from outskirts.filter_report import verdicts

    for path, f in verdicts(folder):
        c, (low, high) = f["counts"], f["ends"]
        bands = ", ".join(f"{name} {b['n']}" for name, b in c["bands"].items())
        off = "".join(f", ECE {r['ece']:.3f}" for r in f["reports"])
        yield f"{folder / path}: {f['method']}: {c['kept']} of {c['n']} kept, band {f['settings']['band']} (P(ID) {low:g} to {high:g}; {bands}){off}"


def _recipe(name: str) -> Recipe:
    from outskirts.find import find

    return find("recipes", name)()
