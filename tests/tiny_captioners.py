"""Tiny random models from images to text of the real transformers classes, saved as folders that the loaders open."""

from pathlib import Path

import torch

from outskirts.captions import QUESTION

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"]


def vocabulary() -> dict[str, int]:
    """Marks, the words of the question and some things."""
    words = QUESTION.casefold().replace("{class}", "cat dog sofa rug lamp grass")
    return {
        w: i
        for i, w in enumerate(
            [*MARKS, ",", ".", "-", *dict.fromkeys(words.replace(".", " ").replace(",", " ").split())]
        )
    }


def tiny_tokenizer():
    """Whole words in lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(vocabulary(), unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", bos_token="[CLS]", eos_token="[SEP]",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def tiny_blip(folder: Path) -> Path:
    """A captioner: it takes no questions."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    sides = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        "vocab_size": len(vocabulary()), "encoder_hidden_size": 16, "max_position_embeddings": 80, "pad_token_id": 0, "bos_token_id": 2,
        "sep_token_id": 3, "eos_token_id": 3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = BlipConfig(text_config={**sides, **text}, vision_config={**sides, "image_size": 16, "patch_size": 8})
        BlipForConditionalGeneration(config).save_pretrained(folder / "blip")
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, BertTokenizer(vocab=vocabulary())).save_pretrained(folder / "blip")
    return folder / "blip"


def tiny_llava(folder: Path) -> Path:
    """A vision-language model: it is asked."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sides, image_size=16, patch_size=8)
    text = LlamaConfig(
        **sides,
        vocab_size=len(vocabulary()),
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=MARKS.index("<image>"))
        )
    model.save_pretrained(folder / "llava")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    template = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        images, tiny_tokenizer(), patch_size=8, vision_feature_select_strategy="default", chat_template=template,
        image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder / "llava")  # fmt: skip
    return folder / "llava"
