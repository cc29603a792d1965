"""Tables of the prose MiniWorld: synonyms, wordings of positions and relations, and sentence templates.

``prose.py`` writes captions from them, and ``jsfree/evaluation/miniworld.py`` parses captions with them.
"""

from typing import Literal

World = Literal["plain", "prose"]
"""How the captions of MiniWorld are written. The images of both worlds are the same."""

# Other nouns for objects of ``vocabulary.OBJECTS``. Each noun belongs to one object only.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "cup": ("mug",),
    "kettle": ("teapot",),
    "fridge": ("refrigerator",),
    "pot": ("saucepan",),
    "car": ("automobile",),
    "bus": ("coach",),
    "bicycle": ("bike",),
    "truck": ("lorry",),
    "umbrella": ("parasol",),
    "sailboat": ("boat", "yacht"),
    "ball": ("volleyball",),
    "tree": ("oak",),
    "dog": ("puppy", "hound"),
    "flower": ("blossom",),
    "cow": ("calf",),
    "pig": ("hog", "piglet"),
    "barn": ("shed",),
    "horse": ("pony",),
    "laptop": ("computer",),
    "lamp": ("lantern",),
    "chair": ("seat",),
    "book": ("volume",),
    "bed": ("bunk",),
    "clock": ("timepiece",),
    "sofa": ("couch",),
    "television": ("TV",),
    "bear": ("teddy bear", "teddy"),
    "piano": ("keyboard",),
    "violin": ("fiddle",),
    "trumpet": ("horn",),
    "microphone": ("mic",),
}

# Plurals of synonyms not formed with -s.
SYNONYM_PLURALS: dict[str, str] = {
    "coach": "coaches",
    "lorry": "lorries",
    "puppy": "puppies",
    "calf": "calves",
    "pony": "ponies",
    "couch": "couches",
}

# The first wording of a position is that of ``vocabulary.POSITIONS``.
POSITION_WORDINGS: dict[str, tuple[str, ...]] = {
    "at the top left": ("at the top left", "in the upper left", "in the top left corner"),
    "at the top": ("at the top", "near the top"),
    "at the top right": ("at the top right", "in the upper right", "in the top right corner"),
    "on the left": ("on the left", "on the left side"),
    "in the middle": ("in the middle", "in the center"),
    "on the right": ("on the right", "on the right side"),
    "at the bottom left": ("at the bottom left", "in the lower left", "in the bottom left corner"),
    "at the bottom": ("at the bottom", "near the bottom"),
    "at the bottom right": ("at the bottom right", "in the lower right", "in the bottom right corner"),
}

# The relation of the first object to the second.
RELATION_WORDINGS: dict[str, tuple[str, ...]] = {
    "near": ("next to", "beside", "close to"),
    "above": ("above", "higher than"),
    "below": ("below", "under"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
}

# The preposition with which a scene takes place in a context; "in" for the others.
CONTEXT_PREPOSITIONS: dict[str, str] = {"street": "on", "beach": "on", "farm": "on", "stage": "on"}

CONTEXT_TEMPLATES: tuple[str, ...] = (
    "This is a {context}.",
    "The picture shows a {context}.",
    "We are {preposition} a {context}.",
    "The scene is set {preposition} a {context}.",
)

# Slots: {a}, {b} and {c} are objects, {at_a}... their positions, {relation} that of {a} to {b}. A position
# follows its object immediately, or is the first phrase of a sentence about one object.
ONE_OBJECT_TEMPLATES: tuple[str, ...] = (
    "there is {a} {at_a}.",
    "{at_a}, there is {a}.",
    "{a} is {at_a}.",
    "{a} can be seen {at_a}.",
    "we see {a}.",
    "there is also {a}.",
)
TWO_OBJECT_TEMPLATES: tuple[str, ...] = (
    "there is {a} and {b}.",
    "we see {a} {at_a} and {b} {at_b}.",
    "{a} is {at_a}, and {b} can be seen {at_b}.",
    "the picture also shows {a} and {b}.",
)
RELATED_TEMPLATES: tuple[str, ...] = (
    "{a} is {relation} {b}.",
    "there is {a} {relation} {b}.",
    "we see {a}, which is {relation} {b}.",
    "{a} {at_a} is {relation} {b}.",
)
THREE_OBJECT_TEMPLATES: tuple[str, ...] = (
    "there are {a}, {b} and {c}.",
    "we also see {a}, {b} and {c}.",
    "{a}, {b} and {c} can be seen.",
)
RELATED_THREE_TEMPLATES: tuple[str, ...] = (
    "{a} is {relation} {b}, and there is also {c}.",
    "{a} is {relation} {b}, and {c} is {at_c}.",
)
# Sentences that continue about the only object of the previous one.
COLOUR_TEMPLATES: tuple[str, ...] = ("it is {colour}.", "its color is {colour}.")
POSITION_TEMPLATES: tuple[str, ...] = ("it is {at_a}.", "it can be seen {at_a}.")
RELATION_TEMPLATES: tuple[str, ...] = ("it is {relation} {b}.", "it can be seen {relation} {b}.")

# Sentences that state nothing about the image.
FILLERS: tuple[str, ...] = (
    "The picture is quite simple.",
    "Everything looks calm.",
    "The colors are easy to tell apart.",
)
