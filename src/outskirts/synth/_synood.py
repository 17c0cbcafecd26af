"""What SynOOD's settings must be."""

from outskirts.errors import OutskirtsError
from outskirts.settings import check_above, check_at_least, check_at_most, check_types


def check_settings(s) -> None:
    """Raises OutskirtsError for settings of `synth.synood.Synthesizer` that cannot be, or not together."""
    check_types(s)
    given = [name for name in ("step", "guidance_scale") if getattr(s, name) is not None]
    counts = ("most", "passes", "probe", "steps", "batch_size", "decode_batch")
    check_above(s, 0, *counts, *given, "strength", "quantile")
    check_at_least(s, 0, "tolerance")
    check_at_most(s, 1, "strength", "quantile")
    if s.select not in ("compressed", "all") and not s.select.startswith("file:"):
        raise OutskirtsError(f"select is {s.select!r}; give compressed, all or file:PATH, one image a line")
    if s.per_class is not None and (s.per_class < 1 or s.select != "compressed"):
        raise OutskirtsError(
            f"per_class is {s.per_class}; it must be above 0, and goes with select=compressed only: give synth.per_class=none"
        )
    if "{context}" not in s.prompt:
        raise OutskirtsError(f"prompt is {s.prompt!r}; it must hold {{context}}")
    if s.loss == "msp" and s.target is not None:
        raise OutskirtsError("loss=msp aims at the uniform distribution and at no energy; leave target out")
