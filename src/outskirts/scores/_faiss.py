"""Neighbours by faiss, on the CPU. Not a score: names that begin with an underscore are not on the shelf.

Torch's search looks at every row for every query, and for that it is the faster of the two (`benchmarks/knn.py`). An index of
cells pays off where the bank is large: the rows are sorted into cells once, and a query looks into the nearest cells only.
"""

import weakref
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from outskirts.errors import OutskirtsError

LARGE = 500_000
"""Rows from which a bank gets an index of cells; below it faiss looks at every row, as torch does."""
LOOKED_INTO = 32
"""Cells that a query looks into, of about a thousand for a million rows."""
NO_INDEX = torch.empty(0, dtype=torch.uint8)
_open: tuple = (None, None)
"""The index that was opened last: (weak reference to its bytes, the index)."""


def installed() -> bool:
    return find_spec("faiss") is not None


def index_of(bank: Float[Tensor, "N D"]) -> UInt8[Tensor, " M"]:
    """An index of the unit rows as bytes, which safetensors can save; empty below `LARGE` rows. The same rows give the same index.

    It holds the rows in half precision: they only say which row is the k-th nearest, the distance is that to the row itself.
    """
    faiss = _faiss()
    if len(bank) < LARGE:
        return NO_INDEX
    cells, d = round(len(bank) ** 0.5), bank.shape[1]
    centre = faiss.IndexFlatIP(d)
    half, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(centre, d, cells, half, product, False)
    index.cp.niter, index.cp.max_points_per_centroid, index.nprobe = 10, 64, LOOKED_INTO
    some = torch.linspace(0, len(bank) - 1, min(len(bank), 64 * cells)).long()
    index.train(bank[some].numpy())
    index.add(bank.numpy())
    return torch.from_numpy(faiss.serialize_index(index))


def neighbour(
    phi: Float[Tensor, "B D"], bank: Float[Tensor, "N D"], k: int, index: UInt8[Tensor, " M"] = NO_INDEX
) -> Int[Tensor, " B"]:
    """Row of `bank` that is the k-th nearest to each of `phi`; of the rows in the cells looked into where there is an `index`."""
    faiss = _faiss()
    queries = phi.float().cpu().contiguous().numpy()
    if not len(index):
        rows = bank.float().cpu().contiguous().numpy()
        _, found = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        _, found = _opened(index).search(queries, k)
    kth = torch.from_numpy(found[:, -1])
    if (kth < 0).any():  # fewer than k rows in the cells looked into
        return neighbour(phi, bank, k).to(bank.device)
    return kth.to(bank.device)


def _opened(index: UInt8[Tensor, " M"]):
    global _open
    if _open[0] is None or _open[0]() is not index:
        _open = (weakref.ref(index), _faiss().deserialize_index(index.numpy()))
    return _open[1]


def _faiss():
    try:
        import faiss
    except ImportError as e:
        raise OutskirtsError(
            "backend='faiss' without faiss; pip install 'outskirts[faiss]', or use backend='torch'"
        ) from e
    return faiss
