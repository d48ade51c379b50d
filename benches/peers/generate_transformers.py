"""Answer questions about images greedily in one batch, as people do with transformers.

    python generate_transformers.py MODEL_DIRECTORY PROMPTS_FILE IMAGE_DIRECTORY THREADS NUM_NEW_TOKENS

The file holds a JSON list of lists of ids, -200 for the image; prompt `n` goes with the `n`th image of the folder, in
name order. Shorter prompts are padded on the left and masked. Generation does not stop early. Prints one JSON line:
new tokens, what the loop took (imports, loading of the model and reading of the images not counted), and the new ids.
"""

import json
import sys
import time
from pathlib import Path

import numpy
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration


def pixels(path, size):
    image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    values = numpy.asarray(image, dtype=numpy.float32).transpose(2, 0, 1) / numpy.float32(255)
    return (values - numpy.float32(0.5)) / numpy.float32(0.5)


def main():
    model_dir, prompts_file, image_dir = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(int(sys.argv[4]))
    num_new_tokens = int(sys.argv[5])
    model = LlavaForConditionalGeneration.from_pretrained(model_dir).eval()
    vision = model.config.vision_config
    image_id, num_image_tokens = model.config.image_token_index, (vision.image_size // vision.patch_size) ** 2
    prompts = json.loads(prompts_file.read_text())
    rows = []
    for prompt in prompts:
        rows.append([each for id_ in prompt for each in ([image_id] * num_image_tokens if id_ == -200 else [id_])])
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    images = sorted(image_dir.iterdir())[: len(prompts)]
    values = torch.from_numpy(numpy.stack([pixels(path, vision.image_size) for path in images]))
    wall = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=mask, pixel_values=values, do_sample=False,
                                max_new_tokens=num_new_tokens, min_new_tokens=num_new_tokens, pad_token_id=0)
    seconds = time.perf_counter() - wall
    answers = output[:, longest:].tolist()
    print(json.dumps({"num_items": sum(map(len, answers)), "loop_wall_seconds": seconds, "answers": answers}))


if __name__ == "__main__":
    main()
