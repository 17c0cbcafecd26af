"""What an English word is the plural of, if it is one: regular endings, and the irregular ones by table."""

from functools import lru_cache

ENDINGS = {
    "lves": "lf", "eaves": "eaf", "oaves": "oaf", "arves": "arf", "ooves": "oof", "ieves": "ief",
    "knives": "knife", "wives": "wife", "lives": "life",
    "children": "child", "mice": "mouse", "lice": "louse", "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox",
    "people": "person", "eaux": "eau", "men": "man",
}  # fmt: skip
"""Ends of plurals, alone and in compounds: bookshelves, dormice, firemen. The singular of another word that ends so is none: olife."""
NO_MEN = frozenset(("omen", "amen", "hymen", "stamen", "semen", "ramen"))
WHOLE = {
    "dice": "die", "cacti": "cactus", "fungi": "fungus", "octopi": "octopus", "hippopotami": "hippopotamus", "nuclei": "nucleus",
    "radii": "radius", "stimuli": "stimulus", "alumni": "alumnus", "gladioli": "gladiolus", "larvae": "larva", "antennae": "antenna",
    "algae": "alga", "vertebrae": "vertebra", "nebulae": "nebula", "pupae": "pupa", "bacteria": "bacterium", "fora": "forum",
    "aquaria": "aquarium", "phenomena": "phenomenon", "criteria": "criterion", "indices": "index", "vertices": "vertex",
    "matrices": "matrix", "oases": "oasis", "axes": "axis", "crises": "crisis", "theses": "thesis", "analyses": "analysis",
    "quizzes": "quiz", "busses": "bus", "gasses": "gas", "emus": "emu", "gnus": "gnu", "menus": "menu", "gurus": "guru",
    "kudus": "kudu", "zebus": "zebu", "tutus": "tutu", "caribous": "caribou", "bayous": "bayou",
}  # fmt: skip
HISS = ("s", "x", "z", "ch", "sh", "o")
"""After these the plural is -es."""


@lru_cache(maxsize=2**16)
def forms(word: str) -> frozenset[str]:
    """A word in small letters as it is, and all that it may be the plural of: axes -> axes, axe, ax, axis."""
    found = {word}
    if word in WHOLE:
        found.add(WHOLE[word])
    found |= {word.removesuffix(e) + one for e, one in ENDINGS.items() if word.endswith(e) and word not in NO_MEN}
    stem = word.removesuffix("s")
    # bus, gas and glass are no plurals, 3s and tvs are
    if stem and stem != word and stem[-1] not in "su" and (len(word) > 3 or stem[-1] not in "aeiou"):
        found.add(stem)
        if len(word) > 3 and word.endswith("es") and word[:-2].endswith(HISS):
            found.add(word[:-2])
        if len(word) > 4 and word.endswith("ies"):
            found.add(word[:-3] + "y")
    return frozenset(found)
