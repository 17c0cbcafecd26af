"""RCG's checkpoints on their way here: key lists and sizes of the published models, tiny files with the same names."""

import argparse
import json
import math
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import load_file

import rcg_reference as reference
from outskirts import mage, mocov3, rcg, vqgan
from outskirts.cli import main
from outskirts.data import Images
from outskirts.errors import OutskirtsError
from outskirts.mage import load_decoder
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.rcg import convert, published
from outskirts.representation import PerSample, Representation
from outskirts.synth.badood import Synthesizer
from rcg_files import (
    AVERAGES,
    BLOCKS,
    MAGE_STATE,
    MOCO_STATE,
    TINY,
    VQGAN_STATE,
    mage_shapes,
    moco_shapes,
    published_files,
    rdm_shapes,
    save,
    vqgan_shapes,
)


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory):
    return published_files(tmp_path_factory.mktemp("rcg"))


@pytest.fixture(scope="module", name="folder")
def _folder(files, tmp_path_factory):
    return convert(files["mage"], tmp_path_factory.mktemp("converted") / "rcg", rdm=files["rdm"], sizes=TINY)


def numbers(shapes):
    return sum(math.prod(s) for s in shapes.values()) / 1e6


class TestPublishedSizes:
    """Parameter counts and key lists of the full models, which are never allocated."""

    def test_the_spec_s_counts(self):
        sizes, fixed = published(1024), ("pos_embed", "decoder_pos_embed", "position_ids")
        large = {k: v for k, v in mage_shapes(sizes.mage).items() if k.rpartition(".")[2] not in fixed}
        assert numbers(large) == pytest.approx(409.6, abs=0.05)
        base = {k: v for k, v in mage_shapes(published(768).mage).items() if k.rpartition(".")[2] not in fixed}
        assert numbers(base) == pytest.approx(146.3, abs=0.05)
        halves = vqgan_shapes(sizes.vqgan)
        assert numbers({k: v for k, v in halves.items() if k.startswith("encoder")}) == pytest.approx(23.8, abs=0.05)
        assert numbers({k: v for k, v in halves.items() if k.startswith("decoder")}) == pytest.approx(30.5, abs=0.05)
        rdm = rdm_shapes(256, 1536, 12)
        assert numbers(rdm) == pytest.approx(62.72, abs=0.005)
        assert len(rdm) == 130  # RCG's notebook: "Keeping EMAs of 132", two of them counters

    @pytest.mark.parametrize("width", [1024, 768])
    def test_every_published_weight_has_a_place(self, width):
        sizes = published(width)
        with torch.device("meta"):
            nets = mage.MAGE(sizes.mage), vqgan.VQGAN(sizes.vqgan), mocov3.MoCoV3(sizes.encoder), rcg.RDM(256, 1536, 12)
        empty = lambda shapes: {k: torch.empty(v, device="meta") for k, v in shapes.items()}  # noqa: E731
        read = {k: v for k, v in mage_shapes(sizes.mage).items() if not rcg.UNREAD.match(k)}
        name = partial(vqgan.published_name, levels=5)
        taken = [
            rcg._taken(nets[0], empty(read), mage.published_name, "MAGE"),
            rcg._taken(nets[1], empty(vqgan_shapes(sizes.vqgan)), name, "VQGAN", vqgan.published_shape),
            rcg._taken(nets[2], empty(moco_shapes(sizes.encoder)), mocov3.published_name, "MoCo"),
        ]
        assert [len(t) for t in taken[::2]] == [len(nets[0].state_dict()), len(nets[2].state_dict())]
        undotted = {f"diffusion_model.{k}".replace(".", ""): v for k, v in rdm_shapes(256, 1536, 12).items()}
        assert len(rcg._taken(nets[3], empty(undotted), rcg.rdm_name, "RDM")) == 130
        assert sum(p.numel() for p in nets[3].parameters()) / 1e6 == pytest.approx(62.72, abs=0.005)


class TestConvert:
    def test_parts_beside_mage_are_the_same(self, files, folder, tmp_path):
        apart = convert(
            files["alone"], tmp_path / "a", tokenizer=files["tokenizer"], encoder=files["encoder"], sizes=TINY
        )
        assert load_decoder(apart).weights_hash == load_decoder(folder).weights_hash
        assert not (apart / "rdm").exists()
        told = json.loads((apart / "mage.json").read_text())["files"]
        assert set(told) == {"alone.pth", "vqgan_jax_strongaug.ckpt", "vitl.pth.tar"}

    def test_the_misspelt_keys_come_from_the_right_blocks(self, files, tmp_path):
        stored = torch.load(files["encoder"], weights_only=False)["state_dict"]
        assert "module.base_encoder.blocks.14.mlp.fc14.weight" in stored
        assert "module.base_encoder.blocks.14.mlp.fc2.weight" not in stored
        convert(files["mage"], tmp_path, encoder=files["encoder"], sizes=TINY)
        ours = load_file(tmp_path / "encoder.safetensors")
        assert torch.equal(ours["vit.blocks.14.mlp.fc2.weight"], MOCO_STATE["blocks.14.mlp.fc2.weight"])
        assert torch.equal(ours["vit.blocks.14.mlp.fc1.weight"], MOCO_STATE["blocks.14.mlp.fc1.weight"])

    def test_the_running_averages_become_our_rdm(self, folder):
        model = Representation.load(folder / "rdm", PerSample(6))
        g = torch.Generator().manual_seed(0)
        z, t = torch.randn(4, 6, generator=g), torch.tensor([1, 125, 300, 999])
        s = AVERAGES
        angles = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(6).double() / 6)
        e = torch.cat([angles.cos(), angles.sin()], 1).float().double()
        e = reference.linear(s, "time_embed.2", F.silu(reference.linear(s, "time_embed.0", e)))
        h = reference.linear(s, "input_proj", z.double())
        for i in range(BLOCKS):
            name = f"res_blocks.{i}"
            u = F.silu(reference.layer_norm(s, f"{name}.in_layers.0", h, eps=1e-5))
            u = reference.linear(s, f"{name}.in_layers.2", u) + reference.linear(s, f"{name}.emb_layers.1", F.silu(e))
            u = F.silu(reference.layer_norm(s, f"{name}.out_layers.0", u, eps=1e-5))
            h = h + reference.linear(s, f"{name}.out_layers.3", u)
        naive = reference.linear(s, "out.2", F.silu(reference.layer_norm(s, "out.0", h)))
        torch.testing.assert_close(model.network(z, t), naive.float(), atol=5e-5, rtol=5e-5)

    def test_bad_ood_runs_on_the_converted_models(self, folder):
        g = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (60, 3, 8, 8), generator=g, dtype=torch.uint8)
        images = Images("tones", ["a", "b"], torch.arange(60) % 2, pixels)
        classifier = Classifier(
            small_resnet("resnet_tiny", 2), classes=["a", "b"], size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3
        )
        settings = {"decoder": f"mage:{folder}", "strengths": (1.0,), "k": 3, "n_steps": 2, "steps": 2, "artefacts": 0}
        own = Synthesizer(**settings, representation=str(folder / "rdm")).fit(images, classifier)
        assert "held_out_loss" not in own.state  # nothing was trained
        plain, guided = (
            replace(own, guidance_scale=scale).fit(images, classifier, state=own.state) for scale in (None, 5.0)
        )
        requests = own.requests(3, seed=0)
        one, other = ([o.image for o in s(requests)] for s in (plain, guided))
        assert all(image.dtype == torch.uint8 for image in one)
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_a_representation_model_of_other_embeddings_is_refused(self, folder):
        with pytest.raises(OutskirtsError, match="of 6 dimensions, and here they have 7"):
            Representation.load(folder / "rdm", PerSample(7))
        with pytest.raises(OutskirtsError, match="width and blocks are its own"):
            Synthesizer(representation=str(folder / "rdm"), width=8)

    def test_a_pickle_with_another_class_is_refused_and_not_run(self, files, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "run"),)

        bad = save(tmp_path / "mage-l.pth", MAGE_STATE, extra=Evil())
        with pytest.raises(OutskirtsError, match="mkdir, which could run code") as e:
            convert(bad, tmp_path / "out")
        assert "\n" not in str(e.value)
        assert not (tmp_path / "run").exists()
        assert argparse.Namespace not in torch.serialization.get_safe_globals()

    def test_missing_and_unexpected_keys_are_named_as_the_file_has_them(self, files, tmp_path):
        state = dict(VQGAN_STATE)
        state["decoder.up.1.block.0.shortcut.weight"] = state.pop("decoder.up.1.block.0.nin_shortcut.weight")
        bad = save(tmp_path / "v.ckpt", state, "state_dict")
        said = (
            "v.ckpt holds other weights .1 missing, first decoder.up.1.block.0.nin_shortcut.weight; "
            "1 unexpected, first decoder.up.1.block.0.shortcut.weight"
        )
        with pytest.raises(OutskirtsError, match=said):
            convert(files["mage"], tmp_path / "out", tokenizer=bad, sizes=TINY)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("which", "state", "said"),
        [
            ("mage", {"token_emb.word_embeddings.weight": torch.ones(2025, 512)}, "a MAGE of width 512; accepted"),
            ("mage", {"weight": torch.ones(1)}, "no MAGE; accepted"),
            ("encoder", {"visual.weight": torch.ones(1)}, "no weights under 'module.base_encoder'"),
            ("rdm", {"weight": torch.ones(1)}, "give RCG's rdm-mocov3vitl.pth"),
            ("rdm", {"model.diffusion_model.input_proj.weight": torch.ones(12, 5)}, "representations of size 5"),
        ],
    )
    def test_other_models_are_told_apart(self, files, tmp_path, which, state, said):
        bad = save(tmp_path / "bad.pth", state)
        given = {"sizes": None if which == "mage" else TINY} | ({} if which == "mage" else {which: bad})
        with pytest.raises(OutskirtsError, match=said):
            convert(bad if which == "mage" else files["mage"], tmp_path / "out", **given)

    def test_rdm_of_another_kind(self, files, tmp_path):
        state = torch.load(files["rdm"], weights_only=False)["model"]
        asks = save(
            tmp_path / "class.pth", state | {"model.diffusion_model.res_blocks.0.context_layers.1.bias": torch.ones(1)}
        )
        with pytest.raises(OutskirtsError, match="asks for a class"):
            convert(files["mage"], tmp_path / "out", rdm=asks, sizes=TINY)
        other = save(
            tmp_path / "other.pth", state | {"alphas_cumprod": (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)}
        )
        with pytest.raises(OutskirtsError, match="another noise schedule"):
            convert(files["mage"], tmp_path / "out", rdm=other, sizes=TINY)

    def test_a_file_without_the_parts_says_how_to_give_them(self, files, tmp_path):
        with pytest.raises(OutskirtsError, match=r"no weights under 'vqgan'; .* --tokenizer"):
            convert(files["alone"], tmp_path, sizes=TINY)
        with pytest.raises(OutskirtsError, match=r"no weights under 'pretrained_encoder'; .* --encoder"):
            convert(files["alone"], tmp_path, tokenizer=files["tokenizer"], sizes=TINY)

    def test_on_the_command_line(self, files, tmp_path):
        told = CliRunner().invoke(main, ["convert-rcg", str(files["mage"]), str(tmp_path / "out")])
        assert told.exit_code == 2
        assert "a MAGE of width 16; accepted: RCG's mage-l.pth" in told.output
        told = CliRunner().invoke(main, ["convert-rcg", str(tmp_path / "none.pth"), str(tmp_path / "out")])
        assert (told.exit_code, told.output.count("\n")) == (2, 1)
        for text in (
            "<html>Quota exceeded</html>",
            "junk",
            "hello world",
            "",
        ):  # the first is what Google Drive may give
            (tmp_path / "text.pth").write_text(text)
            told = CliRunner().invoke(main, ["convert-rcg", str(tmp_path / "text.pth"), str(tmp_path / "out")])
            assert (told.exit_code, told.output.count("\n")) == (2, 1)
            assert "no torch checkpoint" in told.output

    @pytest.mark.parametrize("held", [{1: torch.ones(1)}, {"model": [torch.ones(1)]}, [torch.ones(1)]])
    def test_a_checkpoint_of_something_else_holds_no_model(self, tmp_path, held):
        torch.save(held, tmp_path / "other.pth")
        with pytest.raises(OutskirtsError, match="holds no MAGE"):
            convert(tmp_path / "other.pth", tmp_path / "out")

    def test_half_precision_is_stored_whole(self, files, tmp_path):
        half = save(tmp_path / "v.ckpt", {k: v.half() for k, v in VQGAN_STATE.items()}, "state_dict")
        convert(files["mage"], tmp_path / "out", tokenizer=half, sizes=TINY)
        stored = load_file(tmp_path / "out" / "vqgan.safetensors")
        assert {v.dtype for v in stored.values()} == {torch.float32}
