"""Writes the fixtures of `baselines.rs`: a small pool, the assets, and what each baseline keeps of it.

The rules are those of DataComp's `baselines.py` and of its fork in Open-Qwen2VL, written here as plain pandas and numpy;
languages are told by the real fastText library from a model it trained itself, words are looked up by the real NLTK.

    python -m venv venv && venv/bin/pip install numpy==1.26.4 pandas==2.2.3 pyarrow==17.0.0 fasttext-wheel==0.9.2 nltk==3.5
    venv/bin/python baselines.py ../fixtures/baselines
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import fasttext
import numpy as np
import pandas as pd
from nltk.corpus.reader.wordnet import WordNetCorpusReader

ROOT = Path(sys.argv[1])
RNG = np.random.default_rng(20261122)
DIM = 12

ENGLISH = [
    "a red fox runs over the snow", "two dogs in the park", "the old church at night", "wolves and foxes",
    "my summer holiday at the sea", "women riding horses", "a box of toys", "the quick brown fox", "fox", "a dog",
    "boxes", "running shoes for men", "a photo of\nthe dogs", "better views", "IMG_0042.jpg", "12 345 678",
]
GERMAN = ["ein roter fuchs im schnee", "zwei hunde im park", "die alte kirche bei nacht", "der schnelle hund", ""]
FRENCH = ["un renard dans la neige", "deux chiens dans le parc", "la vieille eglise", "le chien paresseux"]
WORDS = ["fox", "dog", "church", "sea", "horse", "box", "shoe", "view", "toy", "runs", "good", "photo"]


def uid():
    return "".join(f"{b:02x}" for b in RNG.integers(0, 256, 16, dtype=np.uint8))


def captions(n):
    pool = ENGLISH * 3 + GERMAN + FRENCH
    texts = [pool[i] for i in RNG.integers(0, len(pool), n)]
    return [None if RNG.random() < 0.03 else t for t in texts]


def sides(n):
    return RNG.choice([5, 9, 10, 64, 150, 199, 200, 256, 400, 600, 601, 1000, 2001], n).astype(np.int64)


def write_pool(folder):
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    frames, features = [], []
    for name, n in [("b", 70), ("a", 130)]:
        frame = pd.DataFrame({
            "uid": [uid() for _ in range(n)],
            "url": [f"http://example.test/{i}" for i in range(n)],
            "text": captions(n),
            "original_width": sides(n),
            "original_height": sides(n),
            # Few values, so that there are ties; one column in single precision.
            "clip_b32_similarity_score": RNG.choice([0.1, 0.2, 0.25, 0.28, 0.3, 0.35], n),
            "clip_l14_similarity_score": RNG.choice([0.1, 0.2, 0.25, 0.3, 0.35], n).astype(np.float32),
        })
        frame.loc[frame.index[::17], "clip_l14_similarity_score"] = np.nan
        frame.to_parquet(ROOT / folder / f"{name}.parquet", row_group_size=50)
        image = RNG.normal(size=(n, DIM)).astype(np.float16)
        np.savez_compressed(ROOT / folder / f"{name}.npz", l14_img=image, l14_txt=image[::-1].copy(), b32_img=image)
        frames.append(frame)
        features.append(image)
    return pd.concat(frames, ignore_index=True), np.concatenate(features)


def mlm_scores(n):
    answers = ["85", "84", "86\n", "9", "100", "85,", ";85", "90 ", "+95", "", "n/a", "8\nx", "77.5", "-3", "8_7", None]
    return [answers[i] for i in RNG.integers(0, len(answers), n)]


def write_fork(folder):
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    frames = []
    for shard, n in [("00000000", 90), ("00000001", 60)]:
        frame = pd.DataFrame({
            "uid": [uid() for _ in range(n)],
            "caption": captions(n),
            "original_width": sides(n).astype(np.int32),
            "original_height": sides(n).astype(np.int32),
            "status": RNG.choice(["success", "success", "failed_to_download"], n),
        })
        frame.to_parquet(ROOT / folder / f"{shard}.parquet")
        for metric in ["image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding"]:
            frame[f"{metric}_score"] = mlm_scores(n)
            frame[["uid", "caption", "status", f"{metric}_score"]].to_parquet(ROOT / folder / f"{shard}_{metric}.parquet")
        frame["quality_score"] = RNG.choice([0.2, 0.5, 0.6, 0.9], n)
        frame["dfn_clipscore"] = RNG.choice([0.1, 0.15, 0.2, 0.3], n)
        frame[["uid", "caption", "quality_score"]].to_parquet(ROOT / folder / f"{shard}_reward_quality_score.parquet")
        frame[["uid", "caption", "dfn_clipscore"]].to_parquet(ROOT / folder / f"{shard}_dfn_clipscore.parquet")
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def write_language_model(path):
    lines = [f"__label__{label} {text}" for label, texts in [("en", ENGLISH), ("de", GERMAN * 4), ("fr", FRENCH * 4)]
             for text in (t.replace("\n", " ") for t in texts) if text]
    corpus = ROOT / "corpus.txt"
    corpus.write_text("\n".join(lines * 20) + "\n")
    # Hierarchical softmax and subwords, as lid.176.bin has them.
    model = fasttext.train_supervised(str(corpus), dim=8, minn=2, maxn=4, bucket=500, loss="hs", epoch=20, lr=0.1, thread=1, seed=1)
    model.save_model(str(path))
    corpus.unlink()
    return model


def write_wordnet(folder):
    """A WordNet of a dozen words, in the format of the real one; offsets are made up."""
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    licence = "  1 This line stands where the licence of WordNet stands.\n"
    noun = {"fox": 2118333, "dog": 2084071, "church": 8081668, "sea": 9426788, "horse": 2374451, "box": 2883344,
            "shoe": 4199027, "toy": 3964744, "man": 10287213, "woman": 10787470, "view": 5933246, "photo": 3925226,
            "run": 7460104, "park": 8615149, "wolf": 2114100}
    verb = {"run": 1926311, "ride": 1955984, "box": 1417705}
    adj = {"good": 1123148, "old": 1638438, "quick": 979366}
    adv = {"well": 11093}
    for name, letter, words in [("noun", "n", noun), ("verb", "v", verb), ("adj", "a", adj), ("adv", "r", adv)]:
        lines = []
        for index, (lemma, offset) in enumerate(sorted(words.items())):
            pointers = ["@", "~"][: index % 3]
            lines.append(" ".join([lemma, letter, "2", str(len(pointers)), *pointers, "2", "1", f"{offset:08d}", "00000001"]) + "  \n")
        (ROOT / folder / f"index.{name}").write_text(licence + "".join(lines))
    for name, lines in [("noun", "men man\nwomen woman\nwolves wolf\n"), ("verb", "ran run\n"), ("adj", "better good\n"), ("adv", "best well\n")]:
        (ROOT / folder / f"{name}.exc").write_text(lines)
    ids = [2118333, 2883344, 2084071, 4199027, 10787470, 1926311, 1123148, 2114100]
    (ROOT / "wordnet_ids.txt").write_text("".join(f"n{i:08d}\n" if i > 9_999 else f"{i}\n" for i in ids))
    return set(ids)


def first_offset(reader, word):
    word = word.lower()
    for pos in ["n", "v", "a", "r"]:
        for form in reader._morphy(word, pos):
            for offset in reader._lemma_pos_offset_map[form].get(pos, []):
                return offset
    return None


def is_int(text):
    try:
        return int(text)
    except ValueError:
        return None


def mlm(text):
    if text is None:
        return None
    if "\n" in text:
        text = text.split("\n")[0]
    return is_int(text.strip(",").strip(";"))


def sane(token):
    letters = [c for c in token if "a" <= c <= "z"]
    kinds = ["d" if c.isdigit() else "a" for c in token if "a" <= c <= "z" or c in "0123456789"]
    changes = sum(a != b for a, b in zip(kinds, kinds[1:]))
    return (len(token) > 1 and token not in ("ii", "iii", "iv", "vi", "vii", "viii", "ix") and len(letters) > 1
            and not (len(letters) <= 2 and len(token) - len(letters) >= 3) and not (len(token) >= 4 and changes >= 2))


def main():
    ROOT.mkdir(parents=True, exist_ok=True)
    model = write_language_model(ROOT / "language.bin")
    ids = write_wordnet("wordnet")
    with tempfile.TemporaryDirectory() as folder:
        # NLTK opens files besides that say nothing here.
        shutil.copytree(ROOT / "wordnet", folder, dirs_exist_ok=True)
        for name in ["lexnames", "data.noun", "data.verb", "data.adj", "data.adv"]:
            (Path(folder) / name).write_text("WordNet 3.0\n" if name == "data.adj" else "")
        reader = WordNetCorpusReader(folder, None)
    lists = {"junk_captions": ["two dogs in the park", "fox"], "rejected_captions": ["a dog"], "prefixes": ["img"], "suffixes": ["men"]}
    (ROOT / "caption_lists.json").write_text(json.dumps(lists, indent=1))
    pool, features = write_pool("pool")
    fork = write_fork("fork")
    centroids = RNG.normal(size=(9, DIM)).astype(np.float32)
    np.save(ROOT / "centroids.npy", centroids)
    targets = [RNG.normal(size=(2, DIM)).astype(np.float32), RNG.normal(size=(1, DIM)).astype(np.float32)]
    np.save(ROOT / "targets_0.npy", targets[0])
    np.savez(ROOT / "targets_1.npz", embeddings=targets[1])

    def english(text):
        if text is None:
            return False
        return model.predict(text.replace("\n", " "))[0][0] == "__label__en"

    def fraction_threshold(scores, fraction):
        return -np.sort(-scores)[int(len(scores) * fraction)]

    en = pool.text.map(english)
    words = pool.text.map(lambda t: 0 if t is None else len(t.split()))
    chars = pool.text.map(lambda t: 0 if t is None else len(t))
    low = pool[["original_width", "original_height"]].min(axis=1)
    aspect = pool[["original_width", "original_height"]].max(axis=1) / low
    b32, l14 = pool.clip_b32_similarity_score, pool.clip_l14_similarity_score
    names_object = pool.text.map(lambda t: t is not None and any(first_offset(reader, w) in ids for w in t.split()))
    described = pool.text.map(lambda t: t is not None and len(fasttext.tokenize(t)) > 1 and len(t) > 5)
    near = np.argmax(features.astype(np.float32) @ centroids.T, axis=1)
    wanted = set(np.argmax(np.concatenate(targets) @ centroids.T, axis=1).tolist())
    image = en & described & pd.Series([n in wanted for n in near])
    products = np.sort(features.astype(np.float32) @ centroids.T, axis=1)
    assert (products[:, -1] - products[:, -2]).min() > 1e-4, "no image may lie between two centroids"

    digest = os.popen(f"sha256sum {ROOT / 'language.bin'}").read().split()[0]
    ids_digest = os.popen(f"sha256sum {ROOT / 'wordnet_ids.txt'}").read().split()[0]
    language = f'language_model = "@/language.bin"\nlanguage_model_sha256 = "{digest}"\n'
    wordnet = f'wordnet = "@/wordnet"\nwordnet_ids = "@/wordnet_ids.txt"\nwordnet_ids_sha256 = "{ids_digest}"\n'
    clusters = 'centroids = "@/centroids.npy"\ntargets = ["@/targets_0.npy", "@/targets_1.npz"]\n'
    cases = []

    def case(folder, frame, subset, mask, may=None):
        cases.append({"folder": folder, "subset": subset, "uids": sorted(frame.uid[np.asarray(mask, dtype=bool)]),
                      "ties": sorted(frame.uid[np.asarray(may, dtype=bool)]) if may is not None else []})

    case("pool", pool, 'baseline = "no_filter"', np.ones(len(pool)))
    case("pool", pool, f'baseline = "basic_filter"\nvariant = "datacomp"\n[assets]\n{language}',
         en & (words > 2) & (chars > 5) & (low >= 200) & (aspect <= 3.0))
    case("fork", fork, 'baseline = "basic_filter"\nvariant = "open-qwen2vl"',
         (fork.status == "success") & (fork[["original_width", "original_height"]].min(axis=1) >= 10)
         & (fork[["original_width", "original_height"]].max(axis=1) / fork[["original_width", "original_height"]].min(axis=1) <= 4))
    case("pool", pool, 'baseline = "clip_score"\narch = "b32"\nmin_score = 0.25', b32 >= 0.25)
    case("pool", pool, 'baseline = "clip_score"\narch = "l14"\nmin_score = 0.3', l14 >= 0.3)
    for fraction in [0.001, 0.3, 0.55, 0.9, 0.93]:
        case("pool", pool, f'baseline = "clip_score"\narch = "b32"\nfraction = {fraction}', b32 >= fraction_threshold(b32.values, fraction))
        case("pool", pool, f'baseline = "clip_score"\narch = "l14"\nfraction = {fraction}', l14 >= fraction_threshold(l14.values, fraction))
    case("pool", pool, f'baseline = "laion2b"\n[assets]\n{language}', (b32 >= 0.28) & en)
    case("pool", pool, f'baseline = "text_based"\n[assets]\n{language}{wordnet}', en & names_object)
    case("pool", pool, f'baseline = "image_based"\n[assets]\n{language}{clusters}', image)
    case("pool", pool, f'baseline = "image_based_intersect_clip_score"\narch = "l14"\nfraction = 0.3\n[assets]\n{language}{clusters}',
         image & (l14 >= fraction_threshold(l14.values, 0.3)))
    fetched = fork.status == "success"
    for metric in ["image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding"]:
        scores = fork[f"{metric}_score"].map(mlm)
        number = scores.astype(float)
        case("fork", fork, f'baseline = "llava_{metric}_score"\nmin_score = 85', fetched & (number >= 85))
        if metric in ["image_text_matching", "object_detail_fulfillment"]:
            known = number.dropna().values
            threshold = fraction_threshold(known, 0.4)
            case("fork", fork, f'baseline = "llava_{metric}_score"\nfraction = 0.4', fetched & (number > threshold), fetched & (number == threshold))

    def has_sane_token(text):
        if text is None:
            return False
        text = text.lower()
        if text[:1000] in lists["junk_captions"] or text in lists["rejected_captions"]:
            return False
        for ending in [".jpeg", ".jpg", ".png", ".gif"]:
            if text.endswith(ending):
                text = text[: -len(ending)]
                break
        for prefix in lists["prefixes"]:
            if text.startswith(prefix):
                text = text[len(prefix):]
                break
        for suffix in lists["suffixes"]:
            if text.endswith(suffix):
                text = text[: -len(suffix)]
                break
        for c in "-_.,":
            text = text.replace(c, " ")
        return any(sane(t) for t in text.split())

    good = fork.caption.map(has_sane_token)
    assets = '[assets]\ncaption_lists = "@/caption_lists.json"\n'
    case("fork", fork, f'baseline = "reward_quality_score"\nmin_score = 0.6\n{assets}', (fork.quality_score >= 0.6) & good)
    case("fork", fork, f'baseline = "dfn_clip_score"\nfraction = 0.5\n{assets}',
         (fork.dfn_clipscore >= fraction_threshold(fork.dfn_clipscore.values, 0.5)) & good)
    for it in cases:
        total = 200 if it["folder"] == "pool" else 150
        assert "no_filter" in it["subset"] or 0 < len(it["uids"]) + len(it["ties"]) <= total, it["subset"]
    (ROOT / "expected.json").write_text(json.dumps(cases, indent=1))
    (ROOT / "versions.txt").write_text(f"numpy {np.__version__}, pandas {pd.__version__}, fasttext 0.9.2, nltk 3.5\n")


main()
