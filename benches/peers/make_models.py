"""Random models of real sizes, in transformers' own folders.

    python make_models.py clip|llava DIRECTORY TOKENIZER_DIRECTORY [--quick]

`clip` is CLIP ViT-B/32, `llava` a SigLIP base tower of 224 pixels (196 tokens an image) before a Qwen2 of the shape of
Qwen2.5-0.5B. With --quick both are tiny. The weights are drawn from a fixed seed; the tokenizers are copied from the
directory. Speed does not depend on what weights say, and both sides must give the same results with them.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def clip(quick):
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config=dict(tiny), vision_config=dict(tiny)) if quick else CLIPConfig()
    return CLIPModel(config)


def llava(quick):
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"image_size": 224, "patch_size": 16, "hidden_act": "gelu"}
    text = {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    if quick:
        vision |= tiny
        text |= tiny | {"num_key_value_heads": 1}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(**text),
        # The id after the last one of Qwen2.5's tokenizer: `<image>`.
        image_token_index=151665,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def main():
    kind, directory, tokenizer = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(7)
    model = {"clip": clip, "llava": llava}[kind]("--quick" in sys.argv)
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, directory / name)


if __name__ == "__main__":
    main()
