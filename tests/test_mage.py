"""MAGE, its tokenizer and its encoder against the papers' arithmetic in float64, through a converted checkpoint."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import rcg_reference as reference
from outskirts.errors import OutskirtsError
from outskirts.mage import MAGE, MAGEDecoder, _guided, generate, load_decoder
from outskirts.rcg import convert
from rcg_files import MAGE_STATE, MOCO_STATE, TINY, VQGAN_STATE, published_files


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rcg")
    return convert(published_files(folder)["mage"], folder / "converted", sizes=TINY)


@pytest.fixture(scope="module", name="decoder")
def _decoder(folder):
    return load_decoder(folder)


def seeded(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def images(n, side, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


class TestArithmetic:
    """What was converted computes what the published weights mean."""

    def test_vqgan_decoder_with_its_quirk_folded(self, decoder):
        tokens = torch.randint(12, (3, 16), generator=torch.Generator().manual_seed(0))
        codes = VQGAN_STATE["quantize.embedding.weight"].double()[tokens].mT.reshape(3, 5, 4, 4)
        naive = reference.vqgan_images(VQGAN_STATE, codes, levels=3, layers=2, groups=2)
        ours = decoder.vqgan.decoder(codes.float())
        torch.testing.assert_close(ours, naive.float(), atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(decoder.vqgan.images(tokens), naive.float().clamp(0, 1), atol=2e-5, rtol=2e-5)

    def test_the_quirk_matters(self, decoder):
        s = {k: v for k, v in VQGAN_STATE.items() if "nin_shortcut" not in k}
        with pytest.raises(RuntimeError):  # without it the widths do not even fit
            reference.vqgan_features(s, images(1, 16).double(), levels=3, layers=2, groups=2)
        halved = VQGAN_STATE | {k: v / 2 for k, v in VQGAN_STATE.items() if "nin_shortcut" in k}
        ours, theirs = (
            reference.vqgan_features(state, images(1, 16).double(), levels=3, layers=2, groups=2)
            for state in (VQGAN_STATE, halved)
        )
        assert (ours - theirs).abs().max() > 0.01

    def test_vqgan_encoder_and_nearest_code(self, decoder):
        naive = reference.vqgan_features(VQGAN_STATE, images(2, 16).double(), levels=3, layers=2, groups=2)
        torch.testing.assert_close(decoder.vqgan.encoder(images(2, 16)), naive.float(), atol=2e-5, rtol=2e-5)
        distances = (
            (naive.flatten(2).mT[:, :, None] - VQGAN_STATE["quantize.embedding.weight"].double()).square().sum(-1)
        )
        assert torch.equal(decoder.vqgan.tokens(images(2, 16)), distances.argmin(-1))

    def test_mage_logits(self, decoder):
        g = torch.Generator().manual_seed(0)
        tokens = torch.randint(12, (3, 16), generator=g)
        tokens[0, ::2] = tokens[1] = decoder.mage.mask
        z = torch.randn(3, 6, generator=g)
        sizes = {k: getattr(TINY.mage, k) for k in ("depth", "heads", "decoder_depth", "decoder_heads", "codes")}
        naive = reference.mage_logits(MAGE_STATE, tokens, z.double(), **sizes)
        torch.testing.assert_close(decoder.mage(tokens, z), naive.float(), atol=2e-5, rtol=2e-5)

    def test_mocov3_projections(self, decoder):
        x = images(2, 16)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x8 = F.interpolate((x - mean) / std, 8, mode="bicubic", antialias=False).double()
        naive = reference.projections(MOCO_STATE, x8, depth=15, heads=2, patch=4)
        torch.testing.assert_close(decoder.encode(x), naive.float(), atol=2e-5, rtol=2e-5)

    def test_images_of_any_size_are_brought_to_the_crop(self, decoder):
        wide = images(1, 32)[..., :24, :]  # 24 x 32: its shorter side to 16, its middle
        square = F.interpolate(wide, (16, 21), mode="bicubic", antialias=True).clamp(0, 1)[..., 2:18]
        torch.testing.assert_close(decoder.encode(wide), decoder.encode(square), atol=0.02, rtol=0.02)


class TestGenerate:
    def test_a_sample_depends_on_its_generator_alone(self, decoder):
        z = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        for cfg in (0.0, 2.0):
            whole = generate(decoder.mage, z, seeded(0, 1, 2, 3, 4), steps=5, cfg=cfg)
            parts = [generate(decoder.mage, z[i : i + 1], seeded(i), steps=5, cfg=cfg) for i in (4, 1)]
            assert torch.equal(whole[[4, 1]], torch.cat(parts))
            assert not torch.equal(whole[:1], generate(decoder.mage, z[:1], seeded(9), steps=5, cfg=cfg))
            assert whole.min() >= 0
            assert whole.max() < TINY.mage.codes  # neither the mask nor an unused word is left

    def test_first_pass_draws_from_the_categorical(self, decoder):
        n = 4000
        z = torch.ones(1, 6).expand(n, 6)
        drawn = generate(decoder.mage, z, seeded(*range(n)), steps=1)
        p = decoder.mage(torch.full((1, 16), decoder.mage.mask), z[:1])[0].softmax(-1)
        seen = F.one_hot(drawn, 12).double().mean(0)
        assert ((seen - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()

    def test_how_many_are_masked_and_that_the_rest_stays(self, decoder, monkeypatch):
        seen = []
        monkeypatch.setattr(decoder.mage, "forward", lambda t, z: seen.append(t) or MAGE.forward(decoder.mage, t, z))
        last = generate(decoder.mage, torch.ones(1, 6), seeded(0), steps=6)
        counts = [int((t == decoder.mage.mask).sum()) for t in seen]
        assert counts == [16, *(math.floor(16 * math.cos(math.pi * k / 12)) for k in range(1, 6))]
        for before, after in zip(seen, [*seen[1:], last], strict=True):
            known = before != decoder.mage.mask
            assert torch.equal(before[known], after[known])

    def test_without_temperature_the_least_likely_are_drawn_again(self, decoder, monkeypatch):
        seen = []
        monkeypatch.setattr(decoder.mage, "forward", lambda t, z: seen.append(t) or MAGE.forward(decoder.mage, t, z))
        z = torch.ones(1, 6)
        generate(decoder.mage, z, seeded(3), steps=4, temperature=0.0)
        u = torch.rand(4, 2, 16, generator=seeded(3)[0])[0, 0]
        log_p = MAGE.forward(decoder.mage, seen[0], z)[0].log_softmax(-1)
        drawn = (log_p.exp().cumsum(-1) < u[:, None]).sum(-1)
        chance = log_p.gather(-1, drawn[:, None])[:, 0]
        kept = seen[1][0] != decoder.mage.mask
        assert chance[kept].min() >= chance[~kept].max()
        assert torch.equal(seen[1][0][kept], drawn[kept])

    def test_guidance_pushes_away_from_the_null_representation(self, decoder, monkeypatch):
        tokens, z = torch.full((2, 16), decoder.mage.mask), torch.randn(2, 6)
        given, without = decoder.mage(tokens, z), decoder.mage(tokens, MAGE_STATE["fake_latent"].expand(2, -1))
        torch.testing.assert_close(_guided(decoder.mage, tokens, z, 1.5), given + 1.5 * (given - without))
        assert torch.equal(_guided(decoder.mage, tokens, z, 0.0), given)
        scales = []
        monkeypatch.setattr("outskirts.mage._guided", lambda m, t, z, s: scales.append(s) or _guided(m, t, z, s))
        generate(decoder.mage, z, seeded(0, 1), steps=4, cfg=6.0)
        assert scales == [1.5, 3.0, 4.5, 6.0]


class TestDecoder:
    def test_facts(self, decoder, folder):
        assert isinstance(decoder, MAGEDecoder)
        assert (decoder.name, decoder.dim, decoder.native_size, decoder.temperature) == ("mage", 6, 16, 3.0)
        assert decoder.size == (16, 16)
        assert decoder.weights_hash == load_decoder(folder).weights_hash
        assert not any(p.requires_grad or p.is_meta for p in decoder.mage.parameters())
        assert not decoder.encoder.training
        assert load_decoder(folder, temperature=5.0, cfg=1.0, steps=3).temperature == 5.0

    def test_from_images_to_images(self, decoder):
        z = decoder.normalizer(decoder.encode(images(3, 16)))
        torch.testing.assert_close(z.square().sum(1), torch.full((3,), 5.0))  # D - 1
        torch.testing.assert_close(z.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
        made = decoder.decode(z, seeded(0, 1, 2))
        assert made.shape == (3, 3, 16, 16)
        assert made.min() >= 0
        assert made.max() <= 1
        assert torch.equal(made, decoder.decode(3 * z + 2, seeded(0, 1, 2)))  # length and mean are not read
        torch.testing.assert_close(made[1:2], decoder.decode(z[1:2], seeded(1)))

    def test_another_seed_or_z_is_another_image(self, decoder):
        z = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
        made = decoder.decode(z, seeded(0))
        assert not torch.equal(made, decoder.decode(z, seeded(1)))
        assert not torch.equal(made, decoder.decode(-z, seeded(0)))

    @pytest.mark.parametrize(
        ("z", "said"),
        [
            (torch.randn(2, 5), "embeddings of size 5; MAGE takes 6"),
            (torch.tensor([[1, 2, 3, 4, 5, math.nan], [1, 2, 3, 4, 5, 6]]), "1 of 2 embeddings"),
            (torch.ones(2, 6), "2 of 2 embeddings"),
        ],
    )
    def test_bad_input(self, decoder, z, said):
        with pytest.raises(OutskirtsError, match=said) as e:
            decoder.decode(z, seeded(0, 1))
        assert "\n" not in str(e.value)


class TestLoad:
    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(OutskirtsError, match=r"mage\.json is not there; make it with `outskirts convert-rcg`"):
            load_decoder(tmp_path)

    def test_weights_of_another_model(self, folder, tmp_path):
        folder = shutil.copytree(folder, tmp_path / "copy")
        state = load_file(folder / "mage.safetensors")
        state["words.weight"] = state["words.weight"][:-1]
        state["more"] = state.pop("null")
        save_file(state, folder / "mage.safetensors")
        said = "1 missing, first null; 1 unexpected, first more; 1 of another shape, first words.weight"
        with pytest.raises(OutskirtsError, match=said) as e:
            load_decoder(folder)
        assert "\n" not in str(e.value)
        (folder / "vqgan.safetensors").write_bytes(b"broken")
        (folder / "mage.json").write_text(json.dumps({"format": 1}))
        with pytest.raises(OutskirtsError, match="cannot be read"):
            load_decoder(folder)

    def test_sizes_are_kept(self, folder):
        told = json.loads((folder / "mage.json").read_text())
        assert told["mage"]["decoder_heads"] == 4
        assert load_decoder(folder).vqgan.config == TINY.vqgan
        assert load_decoder(folder).mage.config == TINY.mage
        assert load_decoder(folder).encoder.config == TINY.encoder
