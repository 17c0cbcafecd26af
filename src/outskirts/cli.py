"""The command line: each verb reads its arguments and calls one function. Nothing heavy is imported at the top."""

import os
import sys

import click

from outskirts import __version__, bench_verb, clip_tune_verb, export_verb, filter_verb, fit_commands, rcg_verb
from outskirts.errors import OutskirtsError

FIELDS = click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
OUT = click.option("-o", "--out", type=click.Path(file_okay=False), help="Folder of the run.  [default: runs/RECIPE]")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan (counts, steps, estimated time) and stop.")
REDO = click.option(
    "--redo", metavar="STAGE", help="Make this stage and the later ones again, in place of what they left."
)
WORKERS = click.option(
    "--workers", default="serial", show_default=True, help="Who synthesizes: serial (also under torchrun), ray, ray:N."
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress bars.")


class Verbs(click.Group):
    """Commands in the order in which they are defined; OutskirtsError is one line and exit code 2."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        sys.path.append(os.getcwd())  # dotted paths of the user's own; last, so that nothing there hides a library
        try:
            return super().invoke(ctx)
        except OutskirtsError as e:
            click.echo(f"Error: {e}", err=True)
            ctx.exit(2)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="outskirts")
def main():
    """Make images that lie just outside what a classifier knows, and teach it to say so.

    \b
    outskirts run quickstart              digits, from images to a report, in about a minute
    outskirts list recipes                what can be run
    outskirts show quickstart             every field of a recipe
    outskirts score runs/quickstart/6-bench/detector photo.jpg

    Every command that makes something continues where it was stopped when it is given again.
    """
    from outskirts.allocator import keep_freed

    keep_freed()


def _verb(name: str, until: str | None, text: str, options=()):
    """A command that runs a recipe's stages, all of them or up to `until`; `options` describe a run that has no recipe."""

    def command(recipe, fields, out, dry_run, redo, workers, quiet, **given):
        from pathlib import Path

        from outskirts.override import override

        alone = bench_verb.alone(recipe, fields, given) if options else None
        chosen, folder = (alone, None) if alone else _recipe(recipe)
        chosen, last = (alone, None) if alone else (override(chosen, fields), until)
        folder = out or folder or str(Path("runs") / chosen.name)
        if dry_run:
            from outskirts.plan import plan

            for line in plan(chosen, folder, until=last):
                click.echo(line)
            return
        from outskirts.run import run

        run(chosen, folder, until=last, redo=redo, workers=workers, progress=not quiet)
        page = Path(folder) / "7-report" / "report.html"
        if name in ("run", "bench"):
            from outskirts.kept import line

            click.echo(line(Path(folder)), nl=False, err=True)
        click.echo(page if last is None and page.is_file() else folder)

    command.__doc__ = text
    argument = click.argument("recipe", required=not options)
    for decorate in (QUIET, WORKERS, REDO, DRY_RUN, OUT, *options, FIELDS, argument):
        command = decorate(command)
    return main.command(name)(command)


RECIPE = """

    RECIPE is a name that `outskirts list recipes` shows, the dotted path of a module of yours with a function recipe(), or the
    folder of an earlier run. FIELD=VALUE changes one of its fields; `outskirts show RECIPE` lists them.
    """
_verb("run", None, """Run a recipe: every stage, from images to the report.

    \b
    outskirts run quickstart
    outskirts run quickstart --out runs/q seeds=0,1 train.epochs=3
    outskirts run own --dry-run id=folder:my_images classes=cat,dog near=folder:others
    outskirts run runs/q --redo train""" + RECIPE)  # fmt: skip
_verb("synth", "synth", """Make the outliers of a recipe, and the models that they need.

    \b
    outskirts synth quickstart synth.steps=50 n_outliers=1000
    outskirts synth quickstart synth=noise
    torchrun --nproc-per-node 8 -m outskirts synth quickstart    (its models trained before)""" + RECIPE)  # fmt: skip
main.add_command(filter_verb.filter_)
_verb("train", "train", """Train a recipe's classifier against its outliers, which are made where they are not there yet.

    \b
    outskirts train quickstart train.lam=1 seeds=0-4
    outskirts train quickstart classifier=runs/mine/1-classifier outliers=folder:my_outliers""" + RECIPE)  # fmt: skip
_verb("bench", "bench", bench_verb.TEXT + RECIPE.lstrip("\n"), bench_verb.OPTIONS)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--out", type=click.Path(file_okay=False), help="Folder to write to.  [default: FOLDER/7-report]")
def report(folder, out):
    """Write the report of a run: report.html, one page that needs nothing beside it, and report.json.

    \b
    outskirts report runs/q
    outskirts report runs/q --out public
    """
    from pathlib import Path

    from outskirts.report import write_report

    if (Path(folder) / "run.json").is_file() and not (Path(folder) / "6-bench" / "rows.json").is_file():
        raise OutskirtsError(f"{folder} has no results to report; run `outskirts bench {folder}` first")
    click.echo(write_report(folder, out))


@main.command()
@click.argument("detector", type=click.Path())
@click.argument("images", nargs=-1, required=True)
@click.option("-f", "--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@click.option(
    "-b", "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Images scored at a time."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
def score(detector, images, form, batch_size, device):
    """Score images with a detector: path, score, is_ood, p_value and predicted class of each, on stdout.

    \b
    outskirts score runs/q/6-bench/detector photo.jpg
    outskirts score runs/q/6-bench/detector incoming/ --format jsonl
    outskirts score runs/q/6-bench/detector 'incoming/*.png' > scores.csv

    IMAGES are files, folders (with all that is below) and globs. Higher scores are more out-of-distribution. Files that cannot
    be read are skipped with a line on stderr; their number is told at the end, and the exit code is then 1.
    """
    from outskirts.score_files import score_files

    skipped = score_files(detector, images, sys.stdout, form=form, batch_size=batch_size, device=device)
    if skipped:
        click.echo(f"{skipped} files skipped", err=True)
        sys.exit(1)


main.add_command(export_verb.export)
main.add_command(fit_commands.fit_classifier)
main.add_command(fit_commands.fit_diffusion)
main.add_command(rcg_verb.convert_rcg)
main.add_command(clip_tune_verb.clip_tune)


@main.command("list")
@click.argument("shelf", required=False, metavar="[recipes|synth|scores|benchmarks|images|classifiers|diffusion]")
def list_(shelf):
    """List what a name may stand for: recipes, synthesizers, scores, benchmarks, image sets, models; all without SHELF.

    \b
    outskirts list
    outskirts list recipes
    outskirts list images
    """
    from outskirts.shelf import all_lines, lines

    for line in lines(shelf) if shelf else all_lines():
        click.echo(line)


@main.command()
@click.argument("recipe")
@FIELDS
def show(recipe, fields):
    """Show every field of a recipe, a run's folder, fit-classifier, fit-diffusion or clip-tune; or the parts of a benchmark.

    \b
    outskirts show quickstart
    outskirts show quickstart synth=noise
    outskirts show fit-diffusion channels=32,64
    outskirts show cifar10 root=data
    outskirts show mine.json
    """
    from outskirts import benchmarks, shelf
    from outskirts.override import override

    if (name := recipe.partition("?")[0]) in benchmarks.names() or name.endswith(".json"):
        text = shelf.benchmark_text(recipe, fields)
    elif recipe in shelf.VERBS:
        text = shelf.settings_text(recipe, fields)
    else:
        shelf.check_name(recipe)
        text = shelf.recipe_text(override(_recipe(recipe)[0], fields))
    click.echo(text)


def _recipe(name: str):
    """(recipe, folder or None) of a recipe's name, a dotted path, or the folder of an earlier run."""
    from pathlib import Path

    if (Path(name) / "run.json").is_file():
        from outskirts.run import load_run

        return load_run(name), name
    from outskirts.find import find

    return find("recipes", name)(), None


if __name__ == "__main__":
    main()
