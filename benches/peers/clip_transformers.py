"""Score the image-text pairs of shards with CLIP, as people do with transformers.

    python clip_transformers.py MODEL_DIRECTORY SHARD_DIRECTORY THREADS BATCH_SIZE [SCORES_FILE]

The images are decoded and prepared by the processor's steps in Pillow and numpy (shorter side to 224, bicubic, centre
crop, normalise), texts by the tokenizer, cut at 77 tokens. Prints one JSON line: pairs, and what the loop took (imports
and loading of the model not counted). Scores go into the file as a JSON object by key.
"""

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

MEAN = numpy.array([0.48145466, 0.4578275, 0.40821073], dtype=numpy.float32)
STD = numpy.array([0.26862954, 0.26130258, 0.27577711], dtype=numpy.float32)


def pairs(shards):
    """Key, bytes of the image and caption of every sample."""
    for shard in sorted(shards.glob("*.tar")):
        sample = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if sample.get("key") != key:
                    sample = {"key": key}
                sample[extension] = tar.extractfile(member).read()
                if "jpg" in sample and "txt" in sample:
                    yield key, sample.pop("jpg"), sample.pop("txt").decode()


def pixels(data, size):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if width <= height:
        resized = (size, int(size * height / width))
    else:
        resized = (int(size * width / height), size)
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    values = (numpy.asarray(image, dtype=numpy.float32) / numpy.float32(255) - MEAN) / STD
    return values.transpose(2, 0, 1)


def main():
    model_dir, shards = Path(sys.argv[1]), Path(sys.argv[2])
    threads, batch_size = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    model = CLIPModel.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    size, context = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    scores = {}

    def score(batch):
        texts = tokenizer([text for _, _, text in batch], padding="max_length", truncation=True,
                          max_length=context, return_tensors="pt")
        images = torch.from_numpy(numpy.stack([pixels(image, size) for _, image, _ in batch]))
        output = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], pixel_values=images)
        cosines = (output.image_embeds * output.text_embeds).sum(dim=1)
        scores.update(zip((key for key, _, _ in batch), cosines.tolist()))

    wall = time.perf_counter()
    with torch.inference_mode():
        batch = []
        for pair in pairs(shards):
            batch.append(pair)
            if len(batch) == batch_size:
                score(batch)
                batch = []
        if batch:
            score(batch)
    figures = {"num_items": len(scores), "loop_wall_seconds": time.perf_counter() - wall}
    if len(sys.argv) > 5:
        Path(sys.argv[5]).write_text(json.dumps(scores))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
