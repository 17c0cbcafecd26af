"""VOS draws against pytorch-ood's, 10 classes x 10,000 candidates of 128 features: the ratio of times, target at least 30.

    python benchmarks/vos.py --json results/vos_cpu.json

Fit and draw, turn by turn. "The same picks" has two readings:
  search   the same numbers: every candidate is made, from pytorch-ood's own random stream, and the picks must be its picks. `random` is
           the time of those 12.8 million normal numbers alone, which no search can go below: `ratio_bound` is what that leaves.
  exact    the same distribution, what the synthesizer does: it draws what the search would find (tests/test_synth_baselines.py).
Ten seconds on one core.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from pytorch_ood.loss import VirtualOutlierSynthesizingRegLoss

from outskirts.stamp import stamp
from outskirts.synth import vos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=128, help="feature size (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=10_000, help="draws per class (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="ID features per class (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="timings of each, turn by turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()

    K, D, n, N = args.classes, args.dim, args.candidates, args.rows
    linear = torch.nn.Linear
    peer = VirtualOutlierSynthesizingRegLoss(linear(1, 2), linear(K, 1), linear(D, K), sample_number=N, sample_from=n)
    peer.data_dict = torch.randn(K, N, D, generator=torch.Generator().manual_seed(0))
    features, labels = peer.data_dict.flatten(0, 1), torch.arange(K).repeat_interleave(N)
    ridge = 1e-4 / (features - peer.data_dict.mean(1)[labels]).square().mean().item()  # pytorch-ood's is absolute

    @torch.no_grad()
    def theirs(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return peer._sample_virtual_outliers()

    def ours(seed: int, make) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        means, factor = vos.gaussians(features, labels, K, ridge)
        return means + torch.stack([make(D, n, 1, g) for _ in range(K)]) @ factor.T

    def search(D, n, keep, g):
        z = torch.randn(n, D, generator=g)
        return z[vos.largest(z, keep)[0]].double()

    def numbers(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(K):
            torch.randn(n, D, generator=g)

    _timed(lambda: theirs(0)), _timed(lambda: ours(0, vos.exact))  # the first call of anything is slower
    times, apart = {"pytorch_ood": [], "search": [], "exact": [], "random": []}, 0.0
    for seed in range(args.turns):
        picks, a = _timed(lambda s=seed: theirs(s))
        mine, b = _timed(lambda s=seed: ours(s, search))
        _, c = _timed(lambda s=seed: ours(s, vos.exact))
        _, d = _timed(lambda s=seed: numbers(s))
        apart = max(apart, (picks - mine).abs().max().item())
        for name, seconds in zip(times, (a, b, c, d), strict=True):
            times[name].append(seconds)

    result = {
        "benchmark": "vos",
        "ratio": median(a / b for a, b in zip(times["pytorch_ood"], times["exact"], strict=True)),
        "ratio_search": median(a / b for a, b in zip(times["pytorch_ood"], times["search"], strict=True)),
        "ratio_bound": median(a / d for a, d in zip(times["pytorch_ood"], times["random"], strict=True)),
        "target": 30,
        "largest_difference_of_picks": apart,
        "seconds": {name: median(values) for name, values in times.items()},
        **{name: getattr(args, name) for name in ("classes", "dim", "candidates", "rows", "turns")},
        "stamp": stamp(seeds=list(range(args.turns))),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _timed(work) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
