"""RCG's models written out naively over the names and shapes of its checkpoints, from the papers and the spec's quirks."""

import math

import torch
import torch.nn.functional as F


def mage_shapes(width, depth, decoder_depth, tokens, codes, vocabulary, dim, *, patch=16, unread=True):
    """The names in mage-l.pth, without those of the tokenizer and the encoder beside it."""
    shapes = {
        "fake_latent": (1, dim),
        "latent_prior_proj.weight": (width, dim),
        "latent_prior_proj.bias": (width,),
        "token_emb.word_embeddings.weight": (vocabulary, width),
        "token_emb.position_embeddings.weight": (tokens + 1, width),
        "decoder_pos_embed_learned": (1, tokens + 1, width),
        "decoder_embed.weight": (width, width),
        "decoder_embed.bias": (width,),
        "mlm_layer.fc.weight": (width, width),
        "mlm_layer.fc.bias": (width,),
        "mlm_layer.bias": (1, 1, vocabulary),
    }
    for norm in ("token_emb.LayerNorm", "norm", "decoder_norm", "mlm_layer.ln"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name, n in (("blocks", depth), ("decoder_blocks", decoder_depth)):
        for i in range(n):
            shapes |= block_shapes(f"{name}.{i}", width)
    if unread:
        shapes |= dict.fromkeys(("cls_token", "mask_token"), (1, 1, width))
        shapes |= dict.fromkeys(("pos_embed", "decoder_pos_embed"), (1, tokens + 1, width))
        shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
        shapes |= {"decoder_pred.weight": (3 * patch**2, width), "decoder_pred.bias": (3 * patch**2,)}
        shapes |= {"token_emb.position_ids": (1, tokens + 1)}
    return shapes


def block_shapes(name, width):
    shapes = {}
    for norm in ("norm1", "norm2"):
        shapes |= {f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)}
    for layer, out, inside in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
        shapes |= {f"{name}.{layer}.weight": (out * width, inside * width), f"{name}.{layer}.bias": (out * width,)}
    return shapes


def moco_shapes(width, depth, patch, size, hidden, dim):
    """The names of the encoder inside mage-l.pth."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (size // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.0.weight": (hidden, width),
        "head.3.weight": (hidden, hidden),
        "head.6.weight": (dim, hidden),
    }
    for i in range(depth):
        shapes |= block_shapes(f"blocks.{i}", width)
    for i, n in ((1, hidden), (4, hidden), (7, dim)):
        shapes |= {f"head.{i}.running_mean": (n,), f"head.{i}.running_var": (n,), f"head.{i}.num_batches_tracked": ()}
        shapes |= {f"head.{i}.weight": (n,), f"head.{i}.bias": (n,)} if i < 7 else {}
    return shapes


def vqgan_shapes(channels, layers, codes, code_dim):
    """The names in vqgan_jax_strongaug.ckpt."""
    top = channels[-1]
    shapes = {
        "quantize.embedding.weight": (codes, code_dim),
        "encoder.conv_in.weight": (channels[0], 3, 3, 3),
        "encoder.conv_out.weight": (code_dim, top, 1, 1),
        "encoder.conv_out.bias": (code_dim,),
        "decoder.conv_in.weight": (top, code_dim, 3, 3),
        "decoder.conv_in.bias": (top,),
        "decoder.conv_out.weight": (3, channels[0], 3, 3),
        "decoder.conv_out.bias": (3,),
    }
    for half, last in (("encoder", top), ("decoder", channels[0])):
        shapes |= {f"{half}.norm_out.weight": (last,), f"{half}.norm_out.bias": (last,)}
        for i in (1, 2):
            shapes |= residual_shapes(f"{half}.mid.block_{i}", top, top)
    for level, width in enumerate(channels):
        below = channels[max(level - 1, 0)]
        above = channels[min(level + 1, len(channels) - 1)]
        for j in range(layers):
            shapes |= residual_shapes(f"encoder.down.{level}.block.{j}", width if j else below, width)
            shapes |= residual_shapes(f"decoder.up.{level}.block.{j}", width if j else above, width)
        if level:
            name = f"decoder.up.{level}.upsample.conv"
            shapes |= {f"{name}.weight": (width, width, 3, 3), f"{name}.bias": (width,)}
    return shapes


def residual_shapes(name, inside, out):
    shapes = {f"{name}.conv1.weight": (out, inside, 3, 3), f"{name}.conv2.weight": (out, out, 3, 3)}
    for norm, n in (("norm1", inside), ("norm2", out)):
        shapes |= {f"{name}.{norm}.weight": (n,), f"{name}.{norm}.bias": (n,)}
    return shapes | ({} if inside == out else {f"{name}.nin_shortcut.weight": (out, out, 1, 1)})


def random(shapes, seed=0):
    """A checkpoint of small random numbers, variances positive."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("num_batches_tracked", "position_ids")):
            state[name] = torch.zeros(shape, dtype=torch.long)
        else:
            state[name] = 0.3 * torch.randn(shape, generator=g)
        if name.endswith("running_var"):
            state[name] = 0.5 + state[name].abs()
    return state


def linear(s, name, x):
    return F.linear(x, s[f"{name}.weight"].double(), s[f"{name}.bias"].double() if f"{name}.bias" in s else None)


def layer_norm(s, name, x, eps=1e-6):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return x * s[f"{name}.weight"].double() + s[f"{name}.bias"].double()


def block(s, name, x, heads):
    b, n, c = x.shape
    qkv = linear(s, f"{name}.attn.qkv", layer_norm(s, f"{name}.norm1", x)).view(b, n, 3, heads, c // heads)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    attention = (q @ k.mT / math.sqrt(c // heads)).softmax(-1)
    x = x + linear(s, f"{name}.attn.proj", (attention @ v).transpose(1, 2).reshape(b, n, c))
    return x + linear(s, f"{name}.mlp.fc2", F.gelu(linear(s, f"{name}.mlp.fc1", layer_norm(s, f"{name}.norm2", x))))


def mage_logits(s, tokens, z, *, depth, heads, decoder_depth, decoder_heads, codes, placeholder=0):
    """Logits [B, L, codes], the sequence as RCG builds it: a placeholder word stands first and is overwritten."""
    words = s["token_emb.word_embeddings.weight"].double()
    ids = torch.cat([torch.full_like(tokens[:, :1], placeholder), tokens], 1)
    x = layer_norm(s, "token_emb.LayerNorm", words[ids] + s["token_emb.position_embeddings.weight"].double())
    x[:, 0] = linear(s, "latent_prior_proj", z)
    for i in range(depth):
        x = block(s, f"blocks.{i}", x, heads)
    x = linear(s, "decoder_embed", layer_norm(s, "norm", x))
    for b in range(len(ids)):
        for i in range(ids.shape[1]):
            if ids[b, i] == len(words) - 1:
                x[b, i] = x[b, 0]
    x = x + s["decoder_pos_embed_learned"].double()
    for i in range(decoder_depth):
        x = block(s, f"decoder_blocks.{i}", x, decoder_heads)
    x = F.gelu(linear(s, "mlm_layer.fc", layer_norm(s, "decoder_norm", x)))
    x = layer_norm(s, "mlm_layer.ln", x, eps=1e-5) @ words.T + s["mlm_layer.bias"].double()
    return x[:, 1:, :codes]


def projections(s, images, *, depth, heads, patch):
    """MoCo v3's projection of normalised images at the size of its transformer."""
    x = F.conv2d(images, s["patch_embed.proj.weight"].double(), s["patch_embed.proj.bias"].double(), stride=patch)
    x = x.flatten(2).mT
    x = torch.cat([s["cls_token"].double().expand(len(x), -1, -1), x], 1) + s["pos_embed"].double()
    for i in range(depth):
        x = block(s, f"blocks.{i}", x, heads)
    x = layer_norm(s, "norm", x)[:, 0]
    for layer in (0, 3, 6):
        x = linear(s, f"head.{layer}", x)
        mean, var = (s[f"head.{layer + 1}.running_{k}"].double() for k in ("mean", "var"))
        x = (x - mean) / (var + 1e-5).sqrt()
        if layer < 6:
            x = F.relu(x * s[f"head.{layer + 1}.weight"].double() + s[f"head.{layer + 1}.bias"].double())
    return x


def conv(s, name, x):
    w = s[f"{name}.weight"].double()
    bias = s[f"{name}.bias"].double() if f"{name}.bias" in s else None
    return F.conv2d(x, w, bias, padding=w.shape[-1] // 2)


def residual(s, name, x, groups):
    h = x
    for i in (1, 2):
        h = F.group_norm(h, groups, s[f"{name}.norm{i}.weight"].double(), s[f"{name}.norm{i}.bias"].double(), 1e-6)
        h = conv(s, f"{name}.conv{i}", F.silu(h))
    if f"{name}.nin_shortcut.weight" in s:  # the quirk: of h, where a residual block would take x
        return h + conv(s, f"{name}.nin_shortcut", h)
    return h + x


def ending(s, half, x, groups):
    x = F.group_norm(x, groups, s[f"{half}.norm_out.weight"].double(), s[f"{half}.norm_out.bias"].double(), 1e-6)
    return conv(s, f"{half}.conv_out", F.silu(x))


def vqgan_features(s, images, *, levels, layers, groups):
    x = conv(s, "encoder.conv_in", images)
    for level in range(levels):
        for j in range(layers):
            x = residual(s, f"encoder.down.{level}.block.{j}", x, groups)
        if level < levels - 1:
            x = F.avg_pool2d(x, 2)
    for i in (1, 2):
        x = residual(s, f"encoder.mid.block_{i}", x, groups)
    return ending(s, "encoder", x, groups)


def vqgan_images(s, codes, *, levels, layers, groups):
    """Images, not clamped, of code vectors [B, c, h, w]."""
    x = conv(s, "decoder.conv_in", codes)
    for i in (1, 2):
        x = residual(s, f"decoder.mid.block_{i}", x, groups)
    for level in reversed(range(levels)):
        for j in range(layers):
            x = residual(s, f"decoder.up.{level}.block.{j}", x, groups)
        if level:
            x = conv(s, f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2, mode="nearest"))
    return ending(s, "decoder", x, groups)
