"""The default decoder: a small diffusion model of the user's own ID images, conditional on their embeddings.

A UNet2DModel whose class embedding is given to it (`class_embed_type="identity"`), with an MLP in front that reads z, and a
learned vector that stands for no condition (classifier-free guidance). Natural images are diffused on a patch codec's grid.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from outskirts.averaged import Steps, done, fit_steps
from outskirts.codec import PatchPCA
from outskirts.denoisers import Denoiser
from outskirts.diffuse import ddim_levels, sample, sample_from
from outskirts.encoders import Encoder
from outskirts.errors import OutskirtsError
from outskirts.files import writable, write_json
from outskirts.guide import cfg, clip
from outskirts.images import Images
from outskirts.new_diffusion import codec_of, new_model, new_scheduler
from outskirts.recipe import DiffusionSettings
from outskirts.stamp import short_hash
from outskirts.tensors import compare, content_hash, read, write
from outskirts.types import Level, Prediction

LARGEST = 64
"""Side in pixels up to which a model of this kind is trained."""
CONFIG, WEIGHTS = "decoder.json", "decoder.safetensors"


class Conditioned(nn.Module):
    """x_t, t and an embedding's vector [B, E] -> output; `front` makes that vector of z, `null` stands for no condition."""

    def __init__(self, unet: nn.Module, dim: int):
        super().__init__()
        width = 4 * unet.config.block_out_channels[0]  # what the UNet adds its class embedding to
        self.unet = unet
        self.front = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B C h w"], t: Tensor, cond: Float[Tensor, "B E"]) -> Float[Tensor, "B C h w"]:
        return self.unet(x, t, class_labels=cond).sample


class Pictures(Denoiser):
    """The trained network as a model of x_t: pixels in [-1, 1], or the grid of a patch codec."""

    def __call__(self, x: Float[Tensor, "B C h w"], level: Level, cond: Float[Tensor, "B E"]) -> Prediction:
        return self._predict(x, level, class_labels=cond)


@dataclass(frozen=True)
class SmallDecoder:
    """Embeddings as `encoder` gives them <-> images in [0, 1] at `native_size`."""

    encoder: Encoder
    normalizer: nn.Module
    network: Conditioned
    scheduler_config: Mapping
    codec: PatchPCA | None
    native_size: tuple[int, int]
    facts: dict
    steps: int = 20
    """DDIM steps, eta 0."""
    scale: float = 2.0
    """Of the classifier-free guidance."""
    precision: str = "fp32"

    name = "small"

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def size(self) -> tuple[int, int] | None:
        return self.encoder.size

    @cached_property
    def weights_hash(self) -> str:
        modules = [self.network, self.normalizer, *([self.codec] if self.codec else [])]
        return short_hash([content_hash(*modules), self.encoder.weights_hash])

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d"]:
        return self.encoder.encode(images)

    @torch.no_grad()
    def decode(
        self,
        z: Float[Tensor, "B d"],
        generators: Sequence[torch.Generator],
        *,
        anchors: Float[Tensor, "B 3 H W"] | None = None,
        from_anchor: float = 0.0,
    ) -> Float[Tensor, "B 3 H W"]:
        """Images of embeddings. With `from_anchor`, a share of the steps, each starts as its anchor noised so far, not as noise."""
        model = Pictures(self.network.unet, self.scheduler_config, precision=self.precision)
        channels, scale = model.unet.config.in_channels, 1 if self.codec is None else self.codec.patch
        shape = (channels, *(side // scale for side in self.native_size))
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(model.device)
        cond = self.network.front(self.normalizer(z.to(model.device)))
        predictor = cfg(model, cond, self.network.null.expand_as(cond), self.scale)
        predictor = clip(predictor) if self.codec is None else predictor
        levels = ddim_levels(self.scheduler_config, self.steps)
        if from_anchor:
            x0 = to_grid(anchors.to(model.device), self.codec, channels)
            steps = [max(1, round(from_anchor * self.steps))] * len(z)
            x0 = sample_from(predictor, x0, noise, levels, steps)
        else:
            x0 = sample(predictor, noise, levels)
        return (self.codec.decode(x0) if self.codec else ((x0 + 1) / 2).expand(-1, 3, -1, -1)).clamp(0, 1)


def side_of(images: Images, side: int | None) -> tuple[int, int]:
    """(H, W) that a decoder is trained at: `side`, or that of the images; raises OutskirtsError above 64."""
    size = (side, side) if side else images.size
    if size is None or max(size) > LARGEST:
        has = "several sizes" if size is None else "x".join(map(str, size))
        raise OutskirtsError(
            f"decoder=small learns images up to {LARGEST} pixels, and {f'image_size is {side}' if side else f'{images.name} has {has}'}; "
            f"give image_size={LARGEST} or less, decoder=kandinsky:ID, or decoder=none"
        )
    return size


def fit_small(
    images: Images,
    x: Float[Tensor, "N d"],
    encoder: Encoder,
    normalizer: nn.Module,
    settings: DiffusionSettings,
    *,
    side: int | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
    **sampling,
) -> SmallDecoder:
    """A SmallDecoder trained on `images` and their embeddings `x`; `sampling` are fields of it.

    In `folder` it lies under the hash of all that it is made of: the same call again loads it, or continues it.
    """
    size = side_of(images, side)
    pixels = images.resized(size).pixels
    codec, grey = codec_of(pixels, settings, device)
    identity = {**asdict(settings), "size": size, "images": images.fingerprint, "encoder": encoder.weights_hash}
    identity |= {"z": content_hash(normalizer), "codec": codec is not None}
    own = None if folder is None else folder / f"decoder-{short_hash(identity)}"
    made = own is not None and (own / CONFIG).exists()
    if made and codec is not None:
        codec = PatchPCA.load(own / "codec")  # made again elsewhere, its components may have other signs
    codec = codec and codec.to(device)
    unet = new_model(
        pixels, 0, settings, codec, grey, num_class_embeds=None, class_embed_type="identity", resnet_time_scale_shift="scale_shift"
    )  # fmt: skip
    z = normalizer(x.to(device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Conditioned(unet, z.shape[1]).to(device, memory_format=torch.channels_last)
    scheduler = new_scheduler(settings)
    if made:
        facts, state = json.loads((own / CONFIG).read_text()), read(own / WEIGHTS)
        compare(network.state_dict(), state, own / WEIGHTS)
        network.load_state_dict(state)
    else:
        how = Steps(settings.steps, settings.lr, settings.ema, 1e-4, cosine=True, every=250, seed=settings.seed)
        loss = partial(_loss, pixels, z, codec, scheduler.alphas_cumprod.to(device), settings)
        network, facts = fit_steps(
            network, loss, how, folder=own, identity=identity, title="decoder", progress=progress
        )
        if own is not None:
            if codec is not None:
                codec.save(writable(own) / "codec")
            write(writable(own) / WEIGHTS, {k: v.cpu() for k, v in network.state_dict().items()})
            write_json(own / CONFIG, {**facts, "identity": identity})
            done(own)
    network = network.eval().requires_grad_(False)
    return SmallDecoder(encoder, normalizer, network, dict(scheduler.config), codec, size, facts, **sampling)


def to_grid(images: Float[Tensor, "B 3 H W"], codec: PatchPCA | None, channels: int) -> Float[Tensor, "B C h w"]:
    """Images in [0, 1] as the network diffuses them."""
    if codec is not None:
        return codec.encode(images)
    return (images.mean(1, keepdim=True) if channels == 1 else images) * 2 - 1


def _loss(
    pixels: UInt8[Tensor, "N 3 H W"],
    z: Tensor,
    codec,
    abar: Tensor,
    s: DiffusionSettings,
    network: Conditioned,
    g: torch.Generator,
) -> Float[Tensor, ""]:
    rows, t = (
        torch.randint(len(pixels), (s.batch_size,), generator=g),
        torch.randint(len(abar), (s.batch_size,), generator=g),
    )
    x0 = to_grid(pixels[rows].to(z.device).float() / 255, codec, network.unet.config.in_channels)
    eps = torch.randn(x0.shape, generator=g).to(x0)
    dropped = torch.rand(s.batch_size, generator=g) < s.label_dropout
    rows, t, dropped = (v.to(z.device) for v in (rows, t, dropped))
    cond = torch.where(dropped[:, None], network.null, network.front(z[rows]))
    a, b = abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]
    x_t = (a * x0 + b * eps).contiguous(memory_format=torch.channels_last)
    truth = {"v_prediction": a * eps - b * x0, "epsilon": eps, "sample": x0}[s.prediction_type]
    return (network(x_t, t, cond) - truth).square().mean()
