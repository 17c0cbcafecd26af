"""`outskirts fit-classifier` and `outskirts fit-diffusion`: their words; `fit_verbs` does what they say, and loads torch."""

import click


def _fit(name: str, text: str) -> click.Command:
    """A command that trains one model on a labelled image set."""

    def command(images, out, fields, classes, size, device, quiet):
        from outskirts import fit_verbs

        getattr(fit_verbs, name.replace("-", "_"))(
            images, out, fields, classes=classes, size=size, device=device, progress=not quiet
        )
        click.echo(out)

    command.__doc__ = text
    options = (
        click.option("-q", "--quiet", is_flag=True, help="No progress bars."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ..."),
        click.option(
            "--size",
            type=click.IntRange(min=1),
            nargs=2,
            metavar="H W",
            help="Bring images to this height and width; needed where they differ. In a recipe: size=H,W.",
        ),
        click.option("--classes", help="Some of the classes, e.g. 0-4 or cat,dog."),
        click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]..."),
        click.argument("out", type=click.Path(file_okay=False)),
        click.argument("images"),
    )
    for decorate in options:
        command = decorate(command)
    return click.command(name)(command)


fit_classifier = _fit("fit-classifier", """Train a small classifier on labelled images and save it in the folder OUT.

    \b
    outskirts fit-classifier digits runs/classifier --classes 0-6
    outskirts fit-classifier folder:my_images runs/classifier --size 64 64 epochs=60 arch=resnet18

    IMAGES is an image set by name, e.g. folder:DIR with one sub-folder per class. FIELD=VALUE are fields of
    ClassifierSettings: `outskirts show fit-classifier` lists them.
    """)  # fmt: skip
fit_diffusion = _fit("fit-diffusion", """Train a small class-conditional diffusion model on labelled images and save it in the folder OUT.

    \b
    outskirts fit-diffusion digits runs/diffusion steps=4000
    outskirts fit-diffusion folder:my_images runs/diffusion --size 32 32 codec=patch-pca flip=true

    IMAGES is an image set by name, e.g. folder:DIR with one sub-folder per class. FIELD=VALUE are fields of
    DiffusionSettings: `outskirts show fit-diffusion` lists them.
    """)  # fmt: skip
