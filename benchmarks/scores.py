"""What scoring adds to classifying: (the forward pass + all scores) / the forward pass, target at most 1.5.

    python benchmarks/scores.py --images 10000 --json results/scores_cpu.json

`ratio` is that of the scores that read logits and features, `ratio_with_bank` of those and the ones that search the bank of
training features (kNN, unified). `ratio_of_readers` has each score that reads images or maps in the shared pass (ODIN, RankFeat),
beside nothing else; `ratio_all` is everything at once, `ratio_without_odin` everything but ODIN, whose definition has a backward
and a second forward pass in it. CIFAR-sized images and a bank as large as CIFAR's training split; random weights, which take the
same time as others. The time to fit each score is beside it. About four minutes for 1,000 images on two cores.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from outskirts.allocator import keep_freed
from outskirts.evaluate import collect
from outskirts.find import find, names
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.scored import fit_score
from outskirts.stamp import stamp
from outskirts.types import Observer, Outputs

TARGET = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="resnet18, resnet_small, resnet_tiny (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="images scored (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=50_000, help="stored ID features (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="timings of each, turn by turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()

    keep_freed()  # as the command line does
    torch.manual_seed(0)
    classes = [str(k) for k in range(10)]
    classifier = Classifier(small_resnet(args.arch, 10), classes=classes, size=(32, 32)).frozen()
    images = torch.rand(args.images, 3, 32, 32)
    train, val, outliers = (_outputs(n, classifier) for n in (args.rows, 500, 500))
    fit, scores = {}, {}
    for name in names("scores"):
        if getattr(find("scores", name), "reads_texts", False):  # CLIP's alone
            continue
        start = time.perf_counter()
        scores[name] = fit_score(find("scores", name)(), train, val=val, outliers=outliers, classifier=classifier)
        fit[name] = time.perf_counter() - start
    readers = {name: score for name, score in scores.items() if isinstance(score, Observer)}
    banks = [name for name, score in scores.items() if hasattr(score, "bank_")]
    arrays = [name for name in scores if name not in readers and name not in banks]

    but_odin = [name for name in readers if name != "odin"]
    looks = {"none": [], **{name: [name] for name in readers}, "all": list(readers), "but odin": but_odin}
    outputs = collect(classifier, images, observers=readers.values())  # RankFeat's layer is found once for a classifier
    passes, each = {look: [] for look in looks}, {name: [] for name in arrays + banks}
    for _ in range(args.turns):
        for look, seers in looks.items():
            observers = [readers[name] for name in seers]
            passes[look].append(_seconds(lambda o=observers: collect(classifier, images, observers=o)))
        for name, times in each.items():
            times.append(_seconds(lambda s=scores[name]: s(outputs)))

    def ratio(of: list[str], look: str = "none") -> float:
        """The pass with what looks in it and the scores from arrays, to the pass alone."""
        turns = enumerate(zip(passes[look], passes["none"], strict=True))
        return median((seen + sum(each[name][turn] for name in of)) / alone for turn, (seen, alone) in turns)

    result = {
        "benchmark": "scores",
        "ratio": ratio(arrays),
        "ratio_with_bank": ratio(arrays + banks),
        "ratio_of_readers": {name: ratio([], name) for name in readers},
        "ratio_without_odin": ratio(arrays + banks, "but odin"),
        "ratio_all": ratio(arrays + banks, "all"),
        "target": TARGET,
        "pass_ms_per_image": {look: 1e3 * median(times) / args.images for look, times in passes.items()},
        "score_ms_per_image": {name: 1e3 * median(times) / args.images for name, times in each.items()},
        "fit_seconds": fit,
        **{name: getattr(args, name) for name in ("arch", "images", "rows", "turns")},
        "feature_dim": classifier.feature_dim,
        "stamp": stamp(seeds=[0]),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _outputs(n: int, classifier: Classifier) -> Outputs:
    """Features of a ReLU, and what the last layer makes of them."""
    z = torch.randn(n, classifier.feature_dim).relu()
    return Outputs(classifier.head(z), z, torch.arange(n) % 10)


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
