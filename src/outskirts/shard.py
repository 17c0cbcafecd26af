"""One batch of outliers as a Parquet file in the `datasets` Image convention."""

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from outskirts.types import Outlier, Request


def to_parquet(outliers: Sequence[Outlier], dials: Sequence[str]) -> bytes:
    """The file's bytes, the same for the same outliers; `dials` get a column of their own each. Pages carry checksums."""
    buffer = io.BytesIO()
    pq.write_table(table(outliers, dials), buffer, write_page_checksum=True)
    return buffer.getvalue()


def shard_name(requests: Sequence[Request]) -> str:
    """The file of a batch of requests: the same batch is always the same file."""
    ids = [r.id for r in requests]
    return f"shard-{min(ids):08d}-{max(ids):08d}.parquet"


def table(outliers: Sequence[Outlier], dials: Sequence[str]) -> pa.Table:
    """One row per outlier. Every shard of a store has the same columns, whatever failed, as `datasets` wants it."""
    requests = [o.request for o in outliers]
    columns: dict[str, tuple[pa.DataType, list]] = {
        "id": (pa.int64(), [r.id for r in requests]),
        "seed": (pa.int64(), [r.seed for r in requests]),
        "label": (pa.int64(), [r.label for r in requests]),
        "source": (pa.int64(), [r.source for r in requests]),
        "prompt": (pa.string(), [r.prompt for r in requests]),
        "failed": (pa.string(), [o.notes.get("failed") for o in outliers]),
        "dials": (pa.string(), [json.dumps(dict(r.dials)) for r in requests]),
        "notes": (pa.string(), [json.dumps(dict(o.notes)) for o in outliers]),
        **{d: (pa.float64(), [r.dials.get(d) for r in requests]) for d in dials},
    }
    features = {
        k: {"dtype": "string" if t == pa.string() else str(t).replace("double", "float64"), "_type": "Value"}
        for k, (t, _) in columns.items()
    }
    if any(o.feature is not None for o in outliers):
        columns["feature"] = (
            pa.list_(pa.float32()),
            [None if o.feature is None else o.feature.tolist() for o in outliers],
        )
        features["feature"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    else:
        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns["image"] = (image, [png(o) for o in outliers])
        features["image"] = {"_type": "Image"}
    schema = pa.schema(
        {k: t for k, (t, _) in columns.items()}, {"huggingface": json.dumps({"info": {"features": features}})}
    )
    return pa.table([pa.array(v, t) for t, v in columns.values()], schema=schema)


def picture(pixels: UInt8[Tensor, "3 H W"]) -> Image.Image:
    """As Pillow has it."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def png(outlier: Outlier) -> dict[str, Any] | None:
    """The cell of an Image column, losslessly; None where there is no image."""
    if outlier.image is None:
        return None
    buffer = io.BytesIO()
    picture(outlier.image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{outlier.request.id:08d}.png"}
