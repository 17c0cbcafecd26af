"""`outskirts convert-rcg`."""

import click


@click.command("convert-rcg")
@click.argument("mage", type=click.Path())
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--rdm", metavar="FILE", help="rdm-mocov3vitl.pth: the representation diffusion model, written to OUT/rdm."
)
@click.option("--tokenizer", metavar="FILE", help="vqgan_jax_strongaug.ckpt.  [default: the one inside MAGE]")
@click.option("--encoder", metavar="FILE", help="vitl.pth.tar, of MoCo v3.  [default: the one inside MAGE]")
def convert_rcg(mage, out, rdm, tokenizer, encoder):
    """Convert RCG's published checkpoints to a folder OUT of safetensors, the decoder of Bad-OOD.

    \b
    outskirts convert-rcg mage-l.pth models/rcg --rdm rdm-mocov3vitl.pth
    outskirts convert-rcg mage-l.pth models/rcg --tokenizer vqgan_jax_strongaug.ckpt --encoder vitl.pth.tar

    MAGE is mage-l.pth or mage-b.pth, as linked in the README of github.com/LTH14/rcg. The files are pickles: nothing in them
    is run, and one that holds more than tensors and plain values is refused.
    """
    from outskirts.rcg import convert

    click.echo(convert(mage, out, rdm=rdm, tokenizer=tokenizer, encoder=encoder))
