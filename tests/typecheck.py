"""The type checker that the jaxtyping hook applies under pytest: beartype, where an int is also a float."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
