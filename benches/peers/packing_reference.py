"""Sequence packing as Open-Qwen2VL does it, in plain Python: the peer of oqvl-packer.

The procedure of the reference's two packers, written from its description: `pil` (images shrunk, one pickle per
sequence) and `json` (images as base64 JPEG, one JSON file per sequence, tokenized again when trained on). One tar is
one packing unit. The slow parts are kept as they are: every image is decoded, bins are scanned for each document and
their sums are made anew each time.

Needs `tokenizers` and `pillow`. Run it on tars, or on a JSON list of lengths for bin packing alone:

    packing_reference.py pack --variant pil --tokenizer tokenizer.json --out OUT 00000000.tar ...
    packing_reference.py bins lengths.json

Both print one JSON object with counts and seconds.

Where it is not the reference: ids are a list of int instead of a torch tensor, file names are the pack's number
instead of a random one, and a sample the reference would stop at is an exception here too.
"""

import argparse
import base64
import io
import json
import pickle
import shutil
import tarfile
import time
from pathlib import Path

from PIL import Image, ImageFile
from tokenizers import AddedToken, Tokenizer

IMAGE_TOKEN = "<image>"
ESCAPED_IMAGE_TOKEN = "<image-placeholder>"
IMAGE_TOKEN_ID = -200
END_OF_CHUNK = "<|endofchunk|>"
BOS = "<s>"
EOS = "<|im_end|>"
ADDED_TOKENS = {"pil": [END_OF_CHUNK, BOS, "<|pad|>"], "json": [END_OF_CHUNK, BOS]}

IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp")
SHRUNK_EDGE = 384
MAX_IMAGES = 10
MAX_IDS = 6000

Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = True


class PackingTokenizer:
    """A `tokenizer.json` with the special tokens of one packer variant."""

    def __init__(self, path, variant):
        self.inner = Tokenizer.from_file(str(path))
        self.inner.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS[variant]]
        )
        self.bos = self.inner.token_to_id(BOS)
        self.eos = self.inner.token_to_id(EOS)
        self.pad = self.inner.token_to_id("<|pad|>")

    def ids(self, text):
        return self.inner.encode(text, add_special_tokens=False).ids

    def ids_with_images(self, text):
        """Ids of the pieces around `<image>`, joined by the placeholder id.

        Where the text begins with BOS, every later piece loses its first id as well: the habit of LLaVA's helper.
        """
        pieces = [self.ids(piece) for piece in text.split(IMAGE_TOKEN)]
        skip = 1 if pieces[0] and pieces[0][0] == self.bos else 0
        joined = [self.bos] if skip else []
        for number, piece in enumerate(pieces):
            if number > 0:
                joined.append(IMAGE_TOKEN_ID)
            joined.extend(piece[skip:])
        return joined

    def enclosed(self, ids):
        ids = ids if ids and ids[0] == self.bos else [self.bos, *ids]
        return ids if ids[-1] == self.eos else [*ids, self.eos]


def tar_samples(path):
    """(key, {extension: bytes}) of consecutive members, grouped as webdataset groups them."""
    key, members = None, {}
    with tarfile.open(path, mode="r|*") as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            if members and ((folder, stem) != key or extension in members):
                yield key[1], members
                members = {}
            key = (folder, stem)
            members[extension] = tar.extractfile(member).read()
    if members:
        yield key[1], members


def shrunk_size(width, height):
    """What the PIL variant makes of an image: its formula multiplies by the edge it has divided by."""
    if min(width, height) <= SHRUNK_EDGE:
        return width, height
    if width > height:
        return int(SHRUNK_EDGE / width * width), SHRUNK_EDGE
    return SHRUNK_EDGE, int(SHRUNK_EDGE / height * height)


def shrink(image):
    size = shrunk_size(*image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def jpeg_base64(image):
    file = io.BytesIO()
    image.save(file, format="JPEG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def caption_document(members, tokenizer, variant):
    """(key, document) of a captioned image; None for an image with an edge of one pixel."""
    extension = next(extension for extension in IMAGE_EXTENSIONS if extension in members)
    image = Image.open(io.BytesIO(members[extension])).convert("RGB")
    caption = members["txt"].decode("utf-8")
    info = json.loads(members["json"])
    entry = None
    if variant == "json":
        image_info = [{"image_base64": jpeg_base64(image)}, None]
        entry = {"image_info": image_info, "texts": [None, caption], "key": info["key"], "uid": info["uid"]}
    if 1 in image.size:
        return None
    if variant == "pil":
        image = shrink(image)
    caption = caption.replace(IMAGE_TOKEN, ESCAPED_IMAGE_TOKEN)
    ids = tokenizer.enclosed(tokenizer.ids_with_images(f"{IMAGE_TOKEN}\n{caption}"))
    return info["key"], finished(ids, [image], 1, entry)


def interleaved_document(key, members, tokenizer, variant):
    """(key, document) of texts and images in turn; None where the variant drops it."""
    info = json.loads(members["json"])
    kept, images = [], []
    for index, slot in enumerate(info["image_info"]):
        if slot is None or "image_base64" not in slot:
            kept.append(index)
            continue
        image = Image.open(io.BytesIO(base64.b64decode(slot["image_base64"]))).convert("RGB")
        if 1 in image.size:
            continue
        images.append(shrink(image) if variant == "pil" else image)
        kept.append(index)
    if not images or (variant == "pil" and len(images) >= MAX_IMAGES):
        return None
    text = ""
    for index in kept:
        piece = info["texts"][index]
        if piece is None:
            text += f"{IMAGE_TOKEN}\n"
        else:
            text += piece.replace(IMAGE_TOKEN, ESCAPED_IMAGE_TOKEN) + END_OF_CHUNK
    ids = tokenizer.ids_with_images(text)
    if ids[0] != tokenizer.bos:
        ids = [tokenizer.bos, *ids]
    if variant == "pil" and len(ids) > MAX_IDS:
        return None
    assert ids.count(IMAGE_TOKEN_ID) == len(images), f"{key}: placeholders and images differ in number"
    num_images = len(images)
    if ids[-1] == IMAGE_TOKEN_ID:
        while ids[-1] == IMAGE_TOKEN_ID:
            ids.pop()
        images = images[: ids.count(IMAGE_TOKEN_ID)]
        if not images:
            return None
    return key, finished(tokenizer.enclosed(ids), images, num_images, info if variant == "json" else None)


def finished(ids, images, num_images, entry):
    return {"ids": ids, "images": images, "length": 143 * num_images + len(ids), "entry": entry}


def read_documents(tar, tokenizer, variant, interleaved):
    """Documents by key, in order of arrival; a later one takes the place of an earlier of the same key."""
    documents = {}
    for key, members in tar_samples(tar):
        if interleaved:
            found = interleaved_document(key, members, tokenizer, variant)
        else:
            found = caption_document(members, tokenizer, variant)
        if found is not None:
            documents[found[0]] = found[1]
    return documents


def first_fit_decreasing(lengths, capacity):
    """Bins of keys: the longest first, each into the first bin with room, all bins scanned, all sums made anew."""
    bins = []
    for key in sorted(lengths, key=lambda key: lengths[key], reverse=True):
        for members in bins:
            if sum(lengths[member] for member in members) + lengths[key] <= capacity:
                members.append(key)
                break
        else:
            bins.append([key])
    return bins


def concatenated(members, documents, tokenizer, variant, seq_len):
    """The ids, images and lengths of one bin."""
    ids, images, lengths = [], [], []
    for key in members:
        ids.extend(documents[key]["ids"])
        images.extend(documents[key]["images"])
        lengths.append(documents[key]["length"])
    assert ids.count(IMAGE_TOKEN_ID) == len(images)
    assert sum(lengths) - len(ids) == 143 * len(images)
    if variant == "pil" and len(ids) < seq_len:
        ids.extend([tokenizer.pad] * (seq_len - len(ids)))
    return ids, images, lengths


def pack_tar(tar, out, tokenizer, variant, interleaved=False, seq_len=4096):
    """Packs one tar into `out/<number of the tar>/`; returns its bins of keys and their total lengths."""
    documents = read_documents(tar, tokenizer, variant, interleaved)
    bins = first_fit_decreasing({key: document["length"] for key, document in documents.items()}, seq_len)
    folder = Path(out) / str(int("".join(filter(str.isdigit, Path(tar).stem))))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    totals = []
    for number, members in enumerate(bins):
        ids, images, lengths = concatenated(members, documents, tokenizer, variant, seq_len)
        totals.append(sum(lengths))
        if variant == "pil":
            pack = {"image_tensors": images, "input_ids": ids, "lengths": lengths}
            with open(folder / f"{number:032x}.pkl", "wb") as file:
                pickle.dump(pack, file, protocol=4)
        else:
            data = [{**documents[key]["entry"], "key": key, "length": documents[key]["length"]} for key in members]
            with open(folder / f"{number:032x}_packed.json", "w") as file:
                json.dump({"data": data, "lengths": lengths}, file, indent=2)
    with open(folder.with_name(f"{folder.name}_stats.json"), "w") as file:
        json.dump({"len": totals}, file, indent=2)
    return documents, bins


def read_packed(path, tokenizer):
    """What training makes of one packed JSON file: (ids without padding, sizes of the images)."""
    with open(path) as file:
        entries = json.load(file)["data"]
    ids, images = [], []
    for entry in entries:
        kept, sizes = [], []
        for index, slot in enumerate(entry["image_info"]):
            if slot is not None and "image_base64" in slot:
                image = Image.open(io.BytesIO(base64.b64decode(slot["image_base64"]))).convert("RGB")
                if 1 in image.size:
                    continue
                sizes.append(image.size)
            kept.append(index)
        if not sizes or len(sizes) >= MAX_IMAGES:
            continue
        end = END_OF_CHUNK if len(sizes) > 1 else ""
        text = ""
        for index in kept:
            piece = entry["texts"][index]
            text += f"{IMAGE_TOKEN}\n" if piece is None else piece.replace(IMAGE_TOKEN, ESCAPED_IMAGE_TOKEN) + end
        ids.extend(tokenizer.enclosed(tokenizer.ids_with_images(text)))
        images.extend(sizes)
    return ids, images


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="pack tars")
    pack.add_argument("--variant", choices=sorted(ADDED_TOKENS), default="pil")
    pack.add_argument("--interleaved", action="store_true", help="tars of OBELICS or MMC4 documents")
    pack.add_argument("--tokenizer", required=True)
    pack.add_argument("--out", required=True)
    pack.add_argument("tars", nargs="+")
    bins = commands.add_parser("bins", help="bin packing alone")
    bins.add_argument("--capacity", type=int, default=4096)
    bins.add_argument("lengths", help="JSON list of lengths")
    options = parser.parse_args()

    if options.command == "bins":
        lengths = dict(enumerate(json.loads(Path(options.lengths).read_text())))
        start = time.perf_counter()
        packed = first_fit_decreasing(lengths, options.capacity)
        seconds = time.perf_counter() - start
        print(json.dumps({"items": len(lengths), "bins": len(packed), "seconds": seconds}))
        return

    start = time.perf_counter()
    tokenizer = PackingTokenizer(options.tokenizer, options.variant)
    num_documents = num_bins = 0
    for tar in options.tars:
        documents, packed = pack_tar(tar, options.out, tokenizer, options.variant, options.interleaved)
        num_documents += len(documents)
        num_bins += len(packed)
    seconds = time.perf_counter() - start
    print(json.dumps({"documents": num_documents, "packs": num_bins, "seconds": seconds}))


if __name__ == "__main__":
    main()
