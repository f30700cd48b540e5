"""The words of the rendered world: their CLIP token ids, and what they stand for.

The pocket encoders (configs/pocket_encoders.py) learn these words from the renderer of
`synthetic_gait`, which knows of every pixel what it shows. Ids are those of OpenAI's
vocabulary (MIT licence), as CLIPTokenizer gives them.
"""

import random
import re

START, END = 49406, 49407
# fmt: off
WORDS = {
    "a": (320,), "an": (550,), "the": (518,), "of": (539,), "in": (530,), "on": (525,),
    "at": (536,), "and": (537,), "with": (593,), "is": (533,), "are": (631,),
    "to": (531,), "such": (2046,), "as": (601,), "for": (556,), "front": (2184,),
    "look": (1012,), "attention": (4936,), "given": (4302,), "details": (2353,),
    "photo": (1125,), "picture": (1674,), "image": (2867,), "person": (2533,),
    "walker": (6150,), "man": (786,), "woman": (2308,), "pedestrian": (18256,),
    "human": (2751,), "body": (1774,), "part": (1551,), "parts": (5149,),
    "environmental": (7831,), "walks": (8192,), "walking": (3941,), "wearing": (3309,),
    "carries": (17982,), "head": (1375,), "face": (1710,), "hair": (2225,),
    "torso": (937, 706), "chest": (10563,), "waist": (18459,), "hips": (30191,),
    "shoulders": (18738,), "arm": (4793,), "arms": (5706,), "sleeve": (10536,),
    "sleeves": (19691,), "elbow": (21965,), "elbows": (544, 17000),
    "forearm": (1484, 4793), "forearms": (1484, 5706), "hand": (2463,),
    "hands": (3500,), "leg": (4924,), "legs": (7072,), "limbs": (34886,),
    "thigh": (22877,), "thighs": (30847,), "knee": (9897,), "knees": (19115,),
    "calves": (31857,), "shin": (11784,), "shins": (552, 1041), "ankle": (14777,),
    "ankles": (48688,), "foot": (4738,), "feet": (4804,), "shoe": (7342,),
    "shoes": (4079,), "shirt": (2523,), "coat": (7356,), "sweater": (11455,),
    "jacket": (6164,), "hoodie": (13444,), "trousers": (23172,), "pants": (5003,),
    "shorts": (9680,), "skirt": (12386,), "clothes": (7080,), "clothing": (7425,),
    "skin": (3575,), "bag": (3365,), "backpack": (14894,), "suitcase": (27792,),
    "luggage": (20138,), "wall": (2569,), "walls": (8258,), "background": (5994,),
    "window": (4879,), "windows": (5437,), "door": (2489,), "doors": (4228,),
    "poster": (3574,), "posters": (9673,), "floor": (4125,), "ground": (2461,),
    "sky": (2390,), "clouds": (6244,), "surroundings": (26915,), "environment": (5501,),
    "scene": (3562,), "swinging": (26760,), "striding": (1493, 796), "moving": (3584,),
    "blue": (1746,), "clean": (3772,), "clear": (3143,), "bare": (14318,),
    "upper": (7067,), "lower": (4909,), "long": (1538,), "short": (3005,),
    "dark": (3144,), "bright": (4852,), "red": (736,), "orange": (4287,),
    "yellow": (4481,), "green": (1901,), "purple": (5496,), "pink": (3360,),
    "brown": (2866,), "black": (1449,), "white": (1579,), "grey": (5046,),
    "striped": (22192,), "plain": (10709,), "bowl": (3814,), "fruit": (5190,),
    "wooden": (9057,), "table": (2175,), "bus": (2840,), "stops": (9822,),
    "corner": (5253,), "two": (1237,), "cups": (11463,), "coffee": (2453,),
    "newspaper": (8786,), "small": (2442,), "boat": (4440,), "quiet": (7557,),
    "lake": (2553,), "clock": (6716,), "hangs": (21785,), "fresh": (2975,),
    "bread": (5066,), "paper": (2802,), "dog": (1929,), "dogs": (3255,), "car": (1615,),
    "cars": (3346,), "tree": (2677,), "trees": (4682,), "ball": (1069,),
    "chair": (4269,), "book": (1116,), "books": (2161,), "bottle": (5392,),
    "cat": (2368,), "cats": (3989,), "horse": (4558,), "train": (3231,),
    "flower": (4055,), "flowers": (4023,), ",": (267,), ".": (269,),
}
# fmt: on

# A region of a rendered frame is numbered MATERIALS_PER_PART * part + material, as
# tfds_builders/synthetic_gait stores it.
PARTS = (
    "surroundings", "head", "torso", "upper arm", "forearm", "hand", "thigh", "shank",
    "foot", "bag",
)  # fmt: skip
MATERIALS = ("skin", "hair", "upper", "lower", "shoes", "bag")  # of a person
SURROUNDINGS = ("wall", "panel", "floor", "sky", "beside")  # materials of part 0
MATERIALS_PER_PART = 8
NUM_REGIONS = MATERIALS_PER_PART * len(PARTS)


def token_ids(text: str) -> tuple[int, ...]:
    """A text of WORDS, commas and full stops -> ids with start and end token."""
    ids = [START]
    for word in re.findall(r"[a-z]+|[,.]", text.lower()):
        ids += WORDS[word]
    return (*ids, END)


def regions(parts=None, materials=None) -> frozenset[int]:
    """The regions of these parts of a person and these materials (None: all)."""
    return frozenset(
        MATERIALS_PER_PART * part + material
        for part, name in enumerate(PARTS)
        for material, cloth in enumerate(MATERIALS)
        if part and (parts is None or name in parts)
        if materials is None or cloth in materials
    )


def surroundings(*names: str) -> frozenset[int]:
    return frozenset(SURROUNDINGS.index(name) for name in names)


_ARMS, _LEGS = ("upper arm", "forearm", "hand"), ("thigh", "shank", "foot")
_BODY = PARTS[1:-1]
_PERSON = regions(_BODY)
_COAT = regions(_BODY, ("upper",))
_TROUSERS = regions(_BODY, ("lower",))
_WALLS, _PANELS = surroundings("wall", "panel"), surroundings("panel")
# nouns, the regions that they name, and adjectives that change nothing
THINGS = (
    (("person", "walker", "man", "woman", "pedestrian", "body"), _PERSON,
     ("walking", "moving", "")),
    (("head",), regions(("head",)), ("", "moving")),
    (("face",), regions(("head",), ("skin",)), ("", "clear")),
    (("hair",), regions(("head",), ("hair",)), ("dark", "long", "short", "")),
    (("torso", "chest", "waist"), regions(("torso",)), ("moving", "")),
    (("arms", "arm"), regions(_ARMS), ("swinging", "moving", "bare", "")),
    (("sleeves", "sleeve"), regions(_ARMS, ("upper",)), ("long", "short", "")),
    (("forearms", "forearm"), regions(("forearm",)), ("swinging", "")),
    (("elbows", "elbow"), regions(("upper arm", "forearm")), ("moving", "")),
    (("hands", "hand"), regions(("hand",)), ("swinging", "")),
    (("legs", "leg"), regions(_LEGS), ("striding", "moving", "walking", "")),
    (("thighs", "thigh"), regions(("thigh",)), ("striding", "")),
    (("knees", "knee"), regions(("thigh", "shank")), ("moving", "")),
    (("calves", "shins", "shin"), regions(("shank",)), ("moving", "lower", "")),
    (("feet", "foot", "ankles"), regions(("foot",)), ("striding", "moving", "")),
    (("shoes", "shoe"), regions(("foot",), ("shoes",)), ("dark", "clean", "")),
    (("limbs",), regions((*_ARMS, *_LEGS)), ("moving", "swinging", "")),
    (("coat", "shirt", "sweater", "jacket"), _COAT, ("striped", "plain", "")),
    (("trousers", "pants", "shorts", "skirt"), _TROUSERS, ("long", "dark", "")),
    (("clothes", "clothing"), _COAT | _TROUSERS, ("clean", "plain", "")),
    (("skin",), regions(_BODY, ("skin",)), ("bare", "")),
    (("bag", "backpack", "suitcase", "luggage"), regions(("bag",)), ("small", "")),
    (("wall", "walls"), _WALLS, ("clean", "plain", "white", "grey", "")),
    (("windows", "window"), _PANELS, ("clear", "clean", "bright")),
    (("doors", "door", "posters", "poster"), _PANELS, ("wooden", "plain", "")),
    (("floor", "ground"), surroundings("floor"), ("clean", "plain", "grey", "")),
    (("sky", "clouds"), surroundings("sky"), ("blue", "clear", "white")),
    (("background", "surroundings", "environment", "scene"),
     surroundings("wall", "panel", "floor", "sky"), ("quiet", "plain", "")),
    # what no frame shows
    (("bowl", "table", "bus", "clock", "boat", "newspaper", "bottle", "book", "horse"),
     frozenset(), ("small", "red", "wooden", "")),
    (("fruit", "bread", "coffee", "paper", "dog", "cat", "train", "flower", "lake"),
     frozenset(), ("fresh", "two", "quiet", "")),
    (("car", "chair", "ball", "tree", "cups", "corner"), frozenset(), ("white", "")),
)  # fmt: skip
TEMPLATES = (
    "{}", "the {}", "a photo of the {}", "look at the {}", "{} of the human body",
    "attention is given to the {}", "details such as the {}", "a picture with the {}",
    "attention to environmental details such as the {}", "image of a {}",
    "the person, such as the {}",
)  # fmt: skip


def phrases(count: int, seed: int, without=()) -> list[tuple[str, frozenset[int]]]:
    """`count` texts and the regions that they name, one to three things each.

    without: texts that must not be among them.
    """
    draw, found = random.Random(seed), {}
    while len(found) < count:
        named, parts = set(), []
        for nouns, meaning, adjectives in draw.sample(
            THINGS, draw.choices((1, 2, 3), (4, 3, 3))[0]
        ):
            words = draw.choice(adjectives), draw.choice(nouns)
            parts.append(" ".join(word for word in words if word))
            named |= meaning
        text = (
            ", the ".join(parts[:-1]) + (" and the " if parts[1:] else "") + parts[-1]
        )
        text = draw.choice(TEMPLATES).format(text)
        if text not in without:
            found[text] = frozenset(named)
    return list(found.items())
