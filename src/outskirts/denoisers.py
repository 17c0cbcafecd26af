"""Diffusion models as predictors: pixel (UNet2DModel), patch-coded pixel, and latent (Stable Diffusion 1.x / 2.x).

Each is called as model(x_t, level, cond) -> Prediction and knows how to decode x0 to images in [0, 1] with a gradient, and
which conditions its labels or prompts are. `load_diffusion.py` makes one from a diffusers folder or Hub id.
"""

import contextlib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outskirts.diffuse import ddim_levels, prediction
from outskirts.errors import OutskirtsError
from outskirts.types import Level, Prediction

PRECISIONS = {
    "fp32": None,
    "bf16": torch.bfloat16,
}  # no fp16: guidance has no loss scale to keep its gradient from vanishing


class Denoiser:
    """What pixel and latent models share: the network call, its precision, the schedule."""

    def __init__(self, unet, scheduler_config: Mapping, *, precision: str = "fp32", compile: bool = False):
        if precision not in PRECISIONS:
            raise OutskirtsError(f"precision {precision!r}; accepted: {', '.join(PRECISIONS)}")
        # channels last: convolutions are faster so, forward and backward, on CPUs and on GPUs
        self.unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.scheduler_config = dict(scheduler_config)
        self.kind = self.scheduler_config.get("prediction_type", "epsilon")
        self.autocast = PRECISIONS[precision]
        self.network = torch.compile(self.unet, dynamic=False) if compile else self.unet

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def levels(self, steps: int) -> list[Level]:
        return ddim_levels(self.scheduler_config, steps)

    def cast(self):
        """Context of the model's precision."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext()

    def _predict(self, x: Tensor, level: Level, **conditions) -> Prediction:
        t = torch.full((len(x),), level.t, device=x.device, dtype=torch.long)
        x = x.contiguous(memory_format=torch.channels_last)
        read = self.beside(x)
        with self.cast():
            output = self.network(read, t, **conditions).sample
        return prediction(output.to(x.dtype), x, level, self.kind)

    def beside(self, x: Tensor) -> Tensor:
        """x_t with whatever else stands beside it in the network's input."""
        return x


class LabelEmbedding(nn.Embedding):
    """A table of class embeddings that lets through what is an embedding already."""

    def forward(self, labels: Int[Tensor, "B"] | Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        return labels if labels.is_floating_point() else super().forward(labels)


class PixelDiffusion(Denoiser):
    """A diffusers UNet2DModel over pixels in [-1, 1], or over the grid of a PatchPCA codec.

    classes     names of the labels 0 .. K-1; empty for an unconditional model.
    null_label  label that stands for "no class", where the model was trained with label dropout.
    """

    takes = "label"

    def __init__(self, unet, scheduler_config, *, codec=None, classes=(), null_label: int | None = None, **kwargs):
        if isinstance(unet.class_embedding, nn.Embedding):
            unet.class_embedding = LabelEmbedding.from_pretrained(unet.class_embedding.weight)
        super().__init__(unet, scheduler_config, **kwargs)
        self.codec = codec if codec is None else codec.to(self.device)
        self.classes, self.null_label = tuple(classes), null_label
        side = unet.config.sample_size
        self.shape = (unet.config.in_channels, *((side, side) if isinstance(side, int) else tuple(side)))
        self.conditional = unet.config.num_class_embeds is not None
        self.clips = codec is None
        """Whether x0 has the bounds of pixels, so that it may be clipped."""

    @property
    def image_size(self) -> tuple[int, int]:
        scale = self.codec.patch if self.codec else 1
        return self.shape[1] * scale, self.shape[2] * scale

    def __call__(
        self, x: Float[Tensor, "B C H W"], level: Level, cond: Int[Tensor, "B"] | Float[Tensor, "B E"] | None = None
    ) -> Prediction:
        """`cond` are labels as the model numbers them, or embeddings of classes, see `embed`."""
        if self.conditional and cond is None:
            _, cond = self.condition(labels=[None] * len(x))
        return self._predict(x, level, **({"class_labels": cond} if self.conditional else {}))

    def condition(
        self, *, labels: Sequence[int | None], prompts: Sequence[str] | None = None
    ) -> tuple[Int[Tensor, "B"] | None, Int[Tensor, "B"] | None]:
        """(condition, null condition) of class labels; None among them is the null class."""
        if prompts is not None:
            raise OutskirtsError("this diffusion model takes class labels, not prompts; leave the prompt template out")
        if not self.conditional:
            return None, None
        if self.null_label is None and None in labels:
            raise OutskirtsError(
                "this class-conditional model was trained without a null class; give every request a label"
            )
        most = self.unet.config.num_class_embeds
        ids = [self.null_label if y is None else y for y in labels]
        if not all(0 <= y < most for y in ids):
            raise OutskirtsError(
                f"label {next(y for y in ids if not 0 <= y < most)}; this diffusion model knows 0 to {most - 1}"
            )
        cond = torch.tensor(ids, device=self.device)
        return cond, None if self.null_label is None else torch.full_like(cond, self.null_label)

    def embed(self, labels: Int[Tensor, "B"]) -> Float[Tensor, "B E"]:
        """The embeddings that stand for class labels inside the network; a condition as good as the labels."""
        if not isinstance(self.unet.class_embedding, LabelEmbedding):
            raise OutskirtsError(
                "this diffusion model has no class embeddings; give a class-conditional one, or one of text"
            )
        return self.unet.class_embedding(labels)

    def decode(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], up to what x0 overshoots (not clamped); grey models give three equal channels."""
        if self.codec is not None:
            return self.codec.decode(x)
        return ((x + 1) / 2).expand(-1, 3, -1, -1)

    decode_for_guidance = decode

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        if self.codec is not None:
            return self.codec.encode(images)
        return images.mean(1, keepdim=True) * 2 - 1 if self.shape[0] == 1 else images * 2 - 1


class LatentDiffusion(Denoiser):
    """Stable Diffusion 1.x / 2.x (epsilon or v prediction) with text prompts.

    tiny_vae    AutoencoderTiny that decodes for guidance at an eighteenth of the VAE's cost; final images always come from
                the full VAE. specs: the VAE, not the UNet, is the bill of guided sampling at 512 px.
    image_size  side in pixels; the model's own by default. A multiple of 8.
    checkpointing  recompute activations in the backward pass: about a third slower, several times less memory.
    """

    takes = "prompt"
    clips = False
    classes = ()

    def __init__(
        self,
        unet,
        vae,
        text_encoder,
        tokenizer,
        scheduler_config,
        *,
        tiny_vae=None,
        image_size: int | None = None,
        checkpointing: bool = False,
        **kwargs,
    ):
        super().__init__(unet, scheduler_config, **kwargs)
        self.vae, self.text_encoder, self.tokenizer, self.tiny_vae = vae, text_encoder, tokenizer, tiny_vae
        for module in (vae, text_encoder, tiny_vae):
            if module is not None:
                module.to(self.device).eval().requires_grad_(False)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = image_size or unet.config.sample_size * self.factor
        if side % self.factor or side < 8 * self.factor:
            raise OutskirtsError(f"image size {side}; give a multiple of {self.factor}, at least {8 * self.factor}")
        self.shape = (vae.config.latent_channels, side // self.factor, side // self.factor)
        self.image_size = (side, side)

    def __call__(self, x: Float[Tensor, "B 4 h w"], level: Level, cond: Float[Tensor, "B L E"]) -> Prediction:
        return self._predict(x, level, encoder_hidden_states=cond)

    @torch.no_grad()
    def condition(
        self, *, labels=None, prompts: Sequence[str], shift: Float[Tensor, "B L E"] | None = None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """(text embeddings of the prompts, of the empty prompt), each prompt encoded once.

        shift   added to the token embeddings [L, E] of each prompt, before the text encoder reads them.
        """
        if shift is not None:
            null = self._encode([""])
            return self._encode(prompts, shift), null.expand(len(prompts), -1, -1)
        unique = sorted({"", *prompts})
        embeddings = self._encode(unique)
        row = {p: i for i, p in enumerate(unique)}
        rows = torch.tensor([row[p] for p in prompts], device=self.device)
        return embeddings[rows], embeddings[torch.full_like(rows, row[""])]

    def words(self, text: str) -> Int[Tensor, "n"]:
        """The tokens of a text, without the marks of beginning and end."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def embed(self, tokens: Int[Tensor, "n"]) -> Float[Tensor, "n E"]:
        """The embeddings that stand for tokens at the text encoder's entrance."""
        return self.text_encoder.get_input_embeddings()(tokens)

    def _encode(self, prompts: Sequence[str], shift: Tensor | None = None) -> Float[Tensor, "B L D"]:
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        table = self.text_encoder.get_input_embeddings()
        hook = None if shift is None else table.register_forward_hook(lambda _module, _ids, out: out + shift.to(out))
        try:
            return self.text_encoder(tokens.input_ids.to(self.device))[0]
        finally:
            if hook is not None:
                hook.remove()

    def decode(self, z: Float[Tensor, "B 4 h w"]) -> Float[Tensor, "B 3 H W"]:
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample + 1) / 2

    def decode_for_guidance(self, z: Float[Tensor, "B 4 h w"]) -> Float[Tensor, "B 3 H W"]:
        """The tiny decoder's images where there is one (it takes latents as the UNet sees them), in the model's precision."""
        with self.cast():
            images = self.decode(z) if self.tiny_vae is None else (self.tiny_vae.decode(z).sample + 1) / 2
        return images.to(z.dtype)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 4 h w"]:
        """The mean of the posterior, scaled as the UNet sees it."""
        return self.vae.encode(images * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor
