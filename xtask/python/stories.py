"""A seeded grammar that writes short children's stories in plain English.

What: `story(rng)` returns one story of 80 to 200 words: a hero with a home, a kind of weather, one of nine plots
(something lost, someone in trouble, something to cook, a journey, a fear, a quarrel, a garden, a present, a fallen
star), a helper whose ability fits the obstacle, some dialogue and an ending. Names, pronouns, articles and objects
stay consistent through the whole text. Every phrase was written for this project; no outside text is used.

Why: the demo checkpoints need texts that nobody else has rights to, that can be generated again from a seed, and that are
regular enough for a model with a million parameters to learn their grammar in minutes.

How to run: `python stories.py --seed 1 --count 3` prints stories; `train_demo.py` imports `stories` to train on them.

The first entries of each list are chosen more often, so that the most probable next token is clearly more probable than
the second. Then greedy decoding does not depend on the last bit of a logit. The weights of things are more equal than
those of phrases, and names have equal weights. Otherwise a model would guess a thing or a name instead of copying it from
the text before.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass

SHORTEST, LONGEST = 80, 200  # words

GIRLS = ["Mia", "Lily", "Nora", "Ruby", "Ella", "Rosa", "Zoe", "Hazel", "Luna", "Poppy", "Tilly", "Ada"]
BOYS = ["Pip", "Tom", "Max", "Ben", "Leo", "Sam", "Finn", "Otto", "Hugo", "Milo", "Theo", "Jack"]
INVENTED_NAMES = 0.15  # share of heroes with an invented name, so that models learn to copy unknown names
ONSETS, VOWELS, CODAS = "BDFKLMNPRTVZ", "aeiou", ["", "n", "l", "m"]

HOMES = {
    "fox": ["a warm den", "a snug den"],
    "rabbit": ["a cozy burrow", "a neat burrow"],
    "mouse": ["a tiny house under an oak tree", "a small hole in an old wall"],
    "bear": ["a quiet cave", "a big cave"],
    "squirrel": ["a hollow tree", "a nest in a tall tree"],
    "hedgehog": ["a nest of dry leaves", "a soft bed of moss"],
    "cat": ["a red barn", "an old mill"],
    "duck": ["a nest of reeds", "a little hut of reeds"],
    "frog": ["a green pond", "a pool full of lilies"],
    "girl": ["a little cottage", "a white house"],
    "boy": ["a little cottage", "a small stone house"],
}
PLACES = [
    "at the edge of the forest",
    "near the river",
    "on a green hill",
    "by the sea",
    "beside a quiet lake",
    "not far from the village",
    "in a sunny valley",
]
TRAITS = ["little", "kind", "brave", "curious", "shy", "cheerful", "clever", "gentle", "sleepy", "young"]
HOBBIES = [
    "sing songs",
    "climb trees",
    "count the clouds",
    "read old books",
    "play in the garden",
    "collect round stones",
    "dance in the meadow",
    "listen to the birds",
    "paint pictures",
    "tell stories",
]
WEATHER = [
    ("One sunny morning", "the sky was blue and the birds were singing", "A butterfly danced over the grass."),
    ("One rainy day", "the rain fell softly on the leaves", "Big drops ran down the windows."),
    ("One windy afternoon", "the wind blew through the trees", "The tall grass moved like waves."),
    ("One cold winter day", "white snow lay on the ground", "The lake was covered with ice."),
    ("One warm summer evening", "the air smelled of flowers", "Somewhere a cricket was singing."),
    ("One foggy morning", "a grey mist hung over the fields", "Even the hills were hidden."),
    ("One bright spring day", "yellow flowers were growing everywhere", "Bees flew from flower to flower."),
    ("One autumn day", "red leaves were falling from the trees", "The air was cool and clear."),
]
FOODS = ["bread and honey", "sweet berries", "apple cake", "warm soup", "fresh nuts", "ginger cookies"]
GIVERS = ["grandmother", "grandfather", "mother", "father", "aunt", "uncle"]


def with_article(words: str) -> str:
    """`words` with the indefinite article before it: a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Being:
    """Someone in a story who has a name."""

    name: str
    kind: str
    is_she: bool

    def words(self, prefix: str) -> dict[str, str]:
        """The words for templates: the name, with the key `prefix`, and the pronouns."""
        subject, object_, possessive = ("she", "her", "her") if self.is_she else ("he", "him", "his")
        lead = "" if prefix == "hero" else prefix + "_"
        return {
            prefix: self.name,
            prefix + "_kind": self.kind,
            lead + "he": subject,
            lead + "He": subject.capitalize(),
            lead + "him": object_,
            lead + "his": possessive,
            lead + "His": possessive.capitalize(),
        }


class Tale:
    """A story while it is made: its random numbers, and the words that its templates use."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.hero = self._being(other=None)
        self.words = self.hero.words("hero")
        self.words["trait"] = self.pick(TRAITS)
        self.words["home"] = self.pick(HOMES[self.hero.kind])
        self.words["place"] = self.pick(PLACES)
        self.words["hobby"] = self.pick(HOBBIES)
        self.words["when"], self.words["weather"], self.words["scenery"] = self.pick(WEATHER)
        self.words["food"] = self.pick(FOODS)
        self.words["giver"] = self.pick(GIVERS)

    def pick(self, options):
        """Chooses one of `options`; number n has the weight 1 / sqrt(n)."""
        return self.rng.choices(options, [n**-0.5 for n in range(1, len(options) + 1)])[0]

    def line(self, *templates: str) -> str:
        """Chooses one of `templates` and fills in the words; number n has the weight 1 / n."""
        template = self.rng.choices(templates, [1 / n for n in range(1, len(templates) + 1)])[0]
        return template.format_map(self.words)

    def sometimes(self, chance: float, *templates: str) -> str:
        """`line(*templates)` with this probability, otherwise an empty text."""
        return self.line(*templates) if self.rng.random() < chance else ""

    def name_helper(self, kinds: list[str]) -> None:
        """Chooses a helper, an animal without a name and of another kind than the hero."""
        helper = self.pick([kind for kind in kinds if kind != self.hero.kind])
        description = f"{self.pick(['old', 'friendly', 'wise', 'small', 'busy'])} {helper}"
        a_helper = with_article(description)
        self.words |= {"helper": helper, "a_helper": a_helper, "A_helper": a_helper.capitalize()}

    def name_friend(self) -> None:
        """Chooses a friend with a name, of another kind than the hero and with other pronouns."""
        friend = self._being(other=self.hero)
        self.words |= friend.words("friend") | {"a_friend": with_article(friend.kind)}

    def name_thing(self, key: str, things: list[str]) -> None:
        """Chooses a thing: `{key}` is the thing, `{a_key}` the thing with its article."""
        thing = self.pick(things)
        self.words |= {key: thing, "a_" + key: with_article(thing)}

    def _being(self, other: Being | None) -> Being:
        is_she = self.rng.random() < 0.5 if other is None else not other.is_she
        kinds = [kind for kind in HOMES if kind != ("boy" if is_she else "girl")]
        kind = self.pick([kind for kind in kinds if other is None or kind != other.kind])
        if self.rng.random() < INVENTED_NAMES:
            name = "".join(self.rng.choice(ONSETS) + self.rng.choice(VOWELS) for _ in range(2)).capitalize()
            name += self.rng.choice(CODAS)
        else:
            name = self.rng.choice(GIRLS if is_she else BOYS)
        return Being(name, kind, is_she)


def opening(tale: Tale) -> list[str]:
    """The first paragraph: who the hero is, where the hero lives, and the day on which it all happens."""
    tale.words["a_trait_hero"] = with_article(f"{tale.words['trait']} {tale.hero.kind}")
    return [
        tale.line(
            "Once upon a time there was {a_trait_hero} named {hero}. {He} lived in {home} {place}.",
            "Once upon a time, {a_trait_hero} named {hero} lived in {home} {place}.",
            "{hero} was {a_trait_hero} who lived in {home} {place}.",
            "In {home} {place} lived {a_trait_hero} named {hero}.",
            "Long ago, in {home} {place}, there lived {a_trait_hero} named {hero}.",
        ),
        tale.line(
            "{He} loved to {hobby}.",
            "More than anything, {he} loved to {hobby}.",
            "Every day {he} liked to {hobby}.",
            "{hero} loved to {hobby} all day long.",
        ),
        tale.line("{when}, {weather}.", "{when}, {hero} noticed that {weather}."),
        tale.sometimes(0.4, "{scenery}"),
    ]


def closing(tale: Tale, lesson: list[str]) -> list[str]:
    """The last sentences: what was learned, and how the day ended."""
    return [
        tale.line(*lesson),
        tale.line(
            "That night {hero} went to sleep with a smile.",
            "{hero} was very happy.",
            "From that day on, they were good friends.",
            "And {hero} never forgot that day.",
            "When the stars came out, {hero} walked home and slept well.",
            "And that is how the story ends.",
        ),
    ]


def lost(tale: Tale) -> list[list[str]]:
    """Something dear is lost; a helper who flies, swims or digs can reach it."""
    tale.name_thing(
        "thing",
        [
            "red ball",
            "blue kite",
            "yellow hat",
            "silver bell",
            "wooden boat",
            "warm scarf",
            "golden key",
            "little drum",
            "green cup",
            "toy horse",
        ],
    )
    kinds, spot, rescue = tale.pick(
        [
            (["owl", "blue bird", "crow"], "at the top of a tall tree", "flew up into the tree and brought it down"),
            (["turtle", "otter", "beaver"], "at the bottom of the pond", "dived into the water and brought it up"),
            (["mole", "badger", "mouse"], "deep in a dark hole", "crawled into the hole and pulled it out"),
        ]
    )
    tale.name_helper(kinds)
    tale.words |= {"spot": spot, "rescue": rescue}
    tale.words["first"] = tale.pick(["under the bushes", "behind the stones", "in the tall grass"])
    tale.words["second"] = tale.pick(["beside the path", "under the bridge", "behind the house"])
    return [
        [
            tale.line(
                "{hero} wanted to play with {his} {thing}, but it was gone.",
                "{hero} had {a_thing} that {his} {giver} had made for {him}. But now it was gone.",
                "On the way home, {hero} saw that {his} {thing} was gone.",
            ),
            tale.line(
                "{He} looked {first}. {He} looked {second}. It was not there.",
                "{He} looked {first} and {second}, but {he} could not find it.",
            ),
            tale.line("{hero} began to cry.", "{hero} felt very sad.", "{hero} sat down and did not know what to do."),
        ],
        [
            tale.line("Just then {a_helper} came by.", "Soon {he} met {a_helper}.", "Then {a_helper} heard {him}."),
            tale.line(
                '"Why are you so sad?" asked the {helper}. "I have lost my {thing}," said {hero}.',
                '"What is wrong, {hero}?" asked the {helper}. "I cannot find my {thing}," said {hero}.',
            ),
            tale.line(
                '"I know where it is," said the {helper}. "It is {spot}."',
                '"Do not worry," said the {helper}. "I saw it {spot}."',
            ),
            tale.line("The {helper} {rescue}.", "So the {helper} {rescue}."),
            tale.line('"Thank you!" said {hero}.', '"You found it!" cried {hero}. "Thank you so much!"'),
        ],
        [
            tale.sometimes(0.6, "They sat down together and ate {food}.", "{hero} gave the {helper} some {food}."),
            *closing(
                tale,
                [
                    "{hero} held {his} {thing} and laughed.",
                    "After that, {hero} took good care of {his} {thing}.",
                    "{hero} learned that it is good to ask for help.",
                ],
            ),
        ],
    ]


def trouble(tale: Tale) -> list[list[str]]:
    """Someone small is in trouble, and the hero thinks of a way out."""
    tale.words["small_one"] = tale.pick(
        [kind for kind in ["lamb", "bird", "kitten", "puppy", "mouse", "rabbit", "duck"] if kind != tale.hero.kind]
    )
    tale.words["state"], tale.words["idea"], tale.words["rescue"] = tale.pick(
        [
            ("stuck in the mud", "find a long branch", "held out the branch and pulled the {small_one} out of the mud"),
            (
                "sitting on a rock in the river",
                "push a log into the water",
                "pushed a log into the water, " "and the {small_one} walked across it",
            ),
            (
                "at the bottom of a deep hole",
                "bring a rope",
                "let down a rope and pulled the {small_one} out of the hole",
            ),
            (
                "caught in a thorn bush",
                "move the thorns one by one",
                "moved the thorns one by one " "until the {small_one} was free",
            ),
            (
                "shaking in the cold wind",
                "share my blanket",
                "wrapped the {small_one} in a blanket " "until it was warm again",
            ),
        ]
    )
    tale.words["rescue"] = tale.words["rescue"].format_map(tale.words)
    return [
        [
            tale.line(
                "{hero} was walking along the path when {he} heard a small voice.",
                "{hero} was on the way to the market when {he} heard someone cry.",
                "While {he} was playing outside, {hero} heard a small voice.",
            ),
            tale.line('"Help! Please help me!" it said.', '"Is anybody there?" it called. "I need help!"'),
            tale.line("It was a little {small_one}, {state}.", "There was a small {small_one}, {state}."),
        ],
        [
            tale.line('"Do not be afraid," said {hero}.', '"I will help you," said {hero}.', '"Wait!" said {hero}.'),
            tale.line('"I have an idea. I will {idea}."', '"I know what to do. I will {idea}."'),
            tale.line("{hero} {rescue}.", "It was hard work, but {hero} did not stop. {He} {rescue}."),
            tale.line(
                '"Thank you," said the {small_one}. "You are very kind."',
                '"You saved me!" said the {small_one}. "How can I thank you?"',
                '"Oh, thank you!" said the {small_one}. "Will you be my friend?"',
            ),
        ],
        [
            tale.sometimes(
                0.7,
                "{hero} gave the {small_one} some {food} and took it home to its mother.",
                "They shared some {food} and played until the sun went down.",
                "Then they walked home together and sang a song.",
            ),
            *closing(
                tale,
                [
                    "{hero} was glad that {he} had stopped to help.",
                    "{hero} learned that even a small friend is a good friend.",
                    "{His} {giver} was very proud of {him}.",
                ],
            ),
        ],
    ]


def cooking(tale: Tale) -> list[list[str]]:
    """A dish lacks one ingredient; the friend who has it asks for a small favour."""
    dish, share, missing, was, amount, kinds = tale.pick(
        [
            ("honey cake", "piece", "honey", "was", "a big jar of honey", ["bear", "bee"]),
            ("apple pie", "piece", "apples", "were", "a basket of red apples", ["squirrel", "horse"]),
            ("pot of soup", "bowl", "carrots", "were", "ten fine carrots", ["rabbit", "mole"]),
            ("loaf of bread", "slice", "flour", "was", "a small bag of flour", ["mouse", "sparrow"]),
            ("rice pudding", "spoon", "milk", "was", "a jug of fresh milk", ["cow", "goat"]),
            ("berry tart", "piece", "berries", "were", "a bowl of ripe berries", ["hedgehog", "badger"]),
        ]
    )
    tale.name_helper(kinds)
    favour, favour_done = tale.pick(
        [
            ("sing me a song", "sang the best song that {he} knew"),
            ("carry my basket", "carried the heavy basket up the hill"),
            ("sweep my floor", "swept the floor until it was clean"),
            ("tell me a story", "told a long and funny story"),
            ("fix my door", "fixed the door with a hammer and two nails"),
        ]
    )
    tale.words |= {"dish": dish, "a_dish": with_article(dish), "share": share, "favour": favour}
    tale.words |= {"missing": missing, "was": was, "amount": amount}
    tale.words["favour_done"] = favour_done.format_map(tale.words)
    tale.words["guest"] = tale.pick(["{his} {giver}", "all {his} friends", "a sick friend"]).format_map(tale.words)
    return [
        [
            tale.line(
                "{hero} wanted to make {a_dish} for {guest}.",
                '"Today I will make {a_dish} for my {giver}," {he} thought.',
                "{hero} decided to make {a_dish} for {guest}.",
            ),
            tale.line(
                "But when {he} looked in the kitchen, there {was} no more {missing}.",
                "But {he} had no {missing}.",
            ),
            tale.line("So {he} went to see {a_helper}.", "So {hero} took a basket and went to visit {a_helper}."),
        ],
        [
            tale.line(
                '"Good morning," said {hero}. "Do you have some {missing} for me?"',
                '"Hello," said {hero}. "May I have some {missing}, please?"',
            ),
            tale.line(
                '"Yes," said the {helper}, "but first you must {favour}."',
                '"Of course," said the {helper}, "if you {favour}."',
            ),
            tale.line("So {hero} {favour_done}.", "{hero} smiled and {favour_done}."),
            tale.line("The {helper} was pleased and gave {him} {amount}."),
        ],
        [
            tale.line(
                "{hero} ran home and made the {dish}. It smelled wonderful.",
                "At home, {hero} mixed and stirred until the {dish} was ready.",
                "Then {hero} went home and made the best {dish} in the world.",
            ),
            tale.line(
                "The {helper} came too, and everyone ate together.",
                "{hero} kept one big {share} for the {helper}.",
            ),
            *closing(
                tale,
                [
                    "It tasted better because they shared it.",
                    "{hero} learned that a kind favour is never lost.",
                    '"This is the best {dish} of all," they said.',
                ],
            ),
        ],
    ]


def journey(tale: Tale) -> list[list[str]]:
    """The hero wants to see a far place; one obstacle needs a helper who can pass it."""
    tale.words["goal"], tale.words["arrival"], tale.words["sight"] = tale.pick(
        [
            ("the sea", "stood by the sea", "The water was blue and wide, and it sparkled in the light"),
            (
                "the top of the mountain",
                "stood at the top of the mountain",
                "The whole world lay below like a little garden",
            ),
            (
                "the great waterfall",
                "stood before the great waterfall",
                "The water fell like silver and sang a loud song",
            ),
            ("the end of the rainbow", "stood at the end of the rainbow", "All the colors danced in the air"),
            (
                "the castle on the hill",
                "stood before the castle on the hill",
                "Its towers were tall and its windows shone like gold",
            ),
        ]
    )
    obstacle, kinds, passing = tale.pick(
        [
            ("a wide river", ["turtle", "beaver", "swan"], "carried {him} across the water"),
            ("a dark wood", ["owl", "firefly", "bat"], "showed {him} the way through the trees"),
            ("a steep cliff", ["goat", "eagle", "lizard"], "helped {him} up, step by step"),
            ("a high wall", ["mole", "badger", "ant"], "showed {him} a secret tunnel under the stones"),
        ]
    )
    tale.name_helper(kinds)
    tale.words |= {"obstacle": obstacle, "passing": passing.format_map(tale.words)}
    return [
        [
            tale.line(
                "{hero} had always wanted to see {goal}.",
                '"I want to see {goal}," said {hero}.',
                "{His} {giver} had told {him} about {goal}, and {hero} wanted to see it.",
            ),
            tale.line(
                "{He} packed some {food} and set off.",
                "So {he} put some {food} in a bag and left the house.",
                "{He} said goodbye to {his} {giver} and started to walk.",
            ),
            tale.line(
                "After a while {he} came to {obstacle}.",
                "{He} walked and walked until {he} came to {obstacle}.",
                "But soon {obstacle} was in the way.",
            ),
            tale.line('"How can I go on?" thought {hero}.', '"Oh no," said {hero}. "What shall I do?"'),
        ],
        [
            tale.line(
                "Then {he} saw {a_helper}.", "Just then {a_helper} came by.", "But {a_helper} was sitting there."
            ),
            tale.line(
                '"Where are you going?" asked the {helper}. "I am going to {goal}," said {hero}.',
                '"You look lost," said the {helper}. "I am on my way to {goal}," said {hero}.',
            ),
            tale.line('"Come with me," said the {helper}.', '"I can help you," said the {helper}.'),
            tale.line("The {helper} {passing}.", "Slowly and carefully, the {helper} {passing}."),
        ],
        [
            tale.line("At last they came to {goal}.", "Before long, {hero} {arrival}."),
            tale.line("{sight}."),
            tale.line('"It is beautiful," said {hero}.', '"I will never forget this," said {hero}.'),
            *closing(
                tale,
                [
                    "{He} shared some {food} with the {helper}, and they went home together.",
                    "{hero} learned that a long way is short with a friend.",
                    "At home, {he} told {his} {giver} all about it.",
                ],
            ),
        ],
    ]


def fear(tale: Tale) -> list[list[str]]:
    """The hero is afraid of something, and a helper shows how to be brave."""
    fears = [
        (
            "the dark",
            "it grew dark and the lamp went out",
            ["owl", "firefly", "bat"],
            "Look up at the stars. They shine for you",
            "looked up and began to count the stars",
        ),
        (
            "thunder",
            "there was a loud boom in the sky",
            ["bear", "badger", "cow"],
            "It is only the clouds playing the drum",
            "clapped and sang along with the thunder",
        ),
        (
            "deep water",
            "the others went to swim in the lake",
            ["otter", "swan", "turtle"],
            "Hold on to me and kick with your feet",
            "took a deep breath and began to swim",
        ),
        (
            "high places",
            "the ball got stuck in a tall tree",
            ["squirrel", "sparrow", "goat"],
            "Take one small step and do not look down",
            "climbed up, one small step at a time",
        ),
    ]
    if tale.words["hobby"] == "climb trees":
        fears.pop()  # who climbs trees is not afraid of high places
    tale.words["fear"], tale.words["moment"], kinds, tale.words["comfort"], tale.words["brave"] = tale.pick(fears)
    tale.name_helper(kinds)
    return [
        [
            tale.line(
                "But there was one thing that {hero} did not like. {He} was afraid of {fear}.",
                "{hero} had a secret. {He} was afraid of {fear}.",
                "Everybody thought that {hero} was never scared, but {he} was afraid of {fear}.",
            ),
            tale.line("That day {moment}.", "Suddenly, {moment}.", "Later that day, {moment}."),
            tale.line(
                "{hero} wanted to run away.", "{hero} hid behind a tree and closed {his} eyes.", "{hero} began to cry."
            ),
        ],
        [
            tale.line("{A_helper} saw {him} and sat down beside {him}.", "{A_helper} came and sat next to {him}."),
            tale.line(
                '"What is wrong?" asked the {helper}. "I am afraid of {fear}," said {hero}.',
                '"Are you scared?" asked the {helper}. "Yes, a little," said {hero}.',
            ),
            tale.line(
                '"I was afraid too, when I was young," said the {helper}.', '"I will stay with you," said the {helper}.'
            ),
            tale.line('"{comfort}."'),
            tale.line("{hero} {brave}.", "So {hero} {brave}.", "Slowly, {hero} opened {his} eyes. Then {he} {brave}."),
        ],
        [
            tale.line(
                '"I did it!" cried {hero}.',
                '"I am not afraid anymore!" said {hero}.',
                '"You are so brave!" said the {helper}.',
            ),
            *closing(
                tale,
                [
                    "{hero} learned that being brave is easier with a friend.",
                    "After that, {he} was not afraid of {fear} anymore.",
                    "{He} ran home and told {his} {giver} what had happened.",
                ],
            ),
        ],
    ]


def quarrel(tale: Tale) -> list[list[str]]:
    """Two friends want the same thing, quarrel, and make peace."""
    tale.name_friend()
    tale.name_thing(
        "thing", ["red ball", "blue kite", "wooden sled", "little drum", "swing", "big umbrella", "toy boat"]
    )
    return [
        [
            tale.line(
                "{hero} went to the meadow to meet {friend} the {friend_kind}.",
                "{His} best friend was {a_friend} named {friend}, and they met in the meadow.",
                "{hero} was playing with {his} friend {friend} the {friend_kind}.",
            ),
            tale.line("Under a tree they found {a_thing}.", "In the grass there was {a_thing}."),
            tale.line(
                '"It is mine!" said {hero}. "No, it is mine!" said {friend}.',
                '"I saw it first!" said {friend}. "No, I saw it first!" said {hero}.',
            ),
            tale.line(
                "They pulled and pulled until the {thing} broke.",
                "They shouted so loudly that the birds flew away.",
                "{friend} ran home, and {hero} was left alone with the {thing}.",
            ),
        ],
        [
            tale.line(
                "Now {hero} was not happy at all.", "{hero} sat down and thought about it.", "Then it was very quiet."
            ),
            tale.line("It was no fun to play alone.", "{He} missed {his} friend.", "{friend} was sad too."),
            tale.line(
                '"I am sorry," said {hero}. "I am sorry too," said {friend}.',
                '"I do not want to fight," said {hero}. "Neither do I," said {friend}.',
                '{hero} went to {friend} and gave {friend_him} some {food}. "I am sorry," {he} said.',
            ),
        ],
        [
            tale.line(
                "So they fixed the {thing} and took turns with it.",
                "They took the {thing} and played with it together.",
                "They shared the {thing}, and it was twice as much fun.",
            ),
            tale.sometimes(0.5, "Then they ate {food} under the tree.", "They laughed and played until it was dark."),
            *closing(
                tale,
                [
                    "{hero} learned that a friend is better than any {thing}.",
                    "They promised never to fight again.",
                    '"It is better to share," said {friend}.',
                ],
            ),
        ],
    ]


def garden(tale: Tale) -> list[list[str]]:
    """A seed is planted and cared for; what grows is big enough for everyone."""
    plant, harvest = tale.pick(
        [
            ("pumpkin", "It was as big as a house"),
            ("sunflower", "It was taller than the roof"),
            ("apple tree", "It was full of sweet red apples"),
            ("strawberry plant", "It was full of sweet red strawberries"),
            ("carrot", "It was so big that {he} could not pull it out alone"),
        ]
    )
    tale.name_helper(["mole", "snail", "sparrow", "worm", "goat"])
    tale.words |= {"plant": plant, "harvest": harvest.format_map(tale.words)}
    return [
        [
            tale.line(
                "{hero} found a small seed on the path.",
                "{His} {giver} gave {him} a small seed.",
                "{hero} bought a small seed at the market.",
            ),
            tale.line(
                "{He} planted it in the garden and gave it some water.",
                "{He} made a hole in the soft earth and put the seed inside.",
            ),
            tale.line(
                "Every day {he} came to look, but nothing happened.", "{He} waited and waited, but nothing grew."
            ),
            tale.line('"Maybe it is a bad seed," thought {hero}.', '"Why does it not grow?" asked {hero}.'),
        ],
        [
            tale.line("{A_helper} heard {him}.", "{A_helper} looked over the fence."),
            tale.line(
                '"A seed needs time," said the {helper}. "Give it water and sing to it."',
                '"Be patient," said the {helper}. "Good things grow slowly."',
            ),
            tale.line(
                "So {hero} brought water every morning and sang to the seed every night.",
                "So {hero} waited. The rain came, and then the sun came back.",
            ),
            tale.line(
                "One day a green leaf came out of the ground.", "Then, one morning, there was a tiny green leaf."
            ),
            tale.line("It grew and grew until it was a great {plant}. {harvest}."),
        ],
        [
            tale.line(
                "{hero} called all {his} friends, and the {helper} came too.",
                '"Come and look!" cried {hero}, and everybody came.',
            ),
            tale.line("They danced around the {plant} and ate {food}.", "They had a big party in the garden."),
            *closing(
                tale,
                [
                    "{hero} learned that good things need time.",
                    "{hero} thanked the {helper} for the good advice.",
                    "{He} kept one new seed for the next year.",
                ],
            ),
        ],
    ]


def present(tale: Tale) -> list[list[str]]:
    """A friend has a birthday; the hero has nothing to give but what can be made by hand."""
    tale.name_friend()
    tale.words["gift"], tale.words["parts"], tale.words["making"] = tale.pick(
        [
            ("a crown of flowers", "flowers", "put them together with a thin string"),
            ("a necklace of shells", "shells", "put them together on a long string"),
            ("a picture of the two of them", "paints", "painted all afternoon"),
            ("a little boat of wood", "sticks", "tied them together with grass"),
            ("a lamp made of paper", "sheets of paper", "folded them with great care"),
        ]
    )
    return [
        [
            tale.line(
                "It was the birthday of {friend} the {friend_kind}.",
                "{His} best friend was {a_friend} named {friend}, and it was {friend_his} birthday.",
            ),
            tale.line(
                "{hero} wanted to give {friend_him} something nice, but {he} had no money.",
                "{hero} went to the shop to buy a gift, but everything cost too much.",
            ),
            tale.line(
                '"What can I give to {friend}?" {he} thought.', "{He} walked around and thought for a long time."
            ),
        ],
        [
            tale.line('"I know!" said {hero}. "I will make {gift}."', "Then {he} had an idea. {He} would make {gift}."),
            tale.line("{He} went outside and looked for {parts}.", "{He} found {parts} and carried them home."),
            tale.line("Then {he} sat down at the table and {making}.", "{He} {making}."),
            tale.line("It was not perfect, but it was made with love.", "When the sun went down, it was ready."),
        ],
        [
            tale.line(
                '"Happy birthday!" said {hero}, and gave {friend} the present.',
                'At the party, {hero} was a little shy. "This is for you," {he} said.',
            ),
            tale.line(
                '"It is beautiful!" said {friend}. "I love it."',
                '"You made this for me?" asked {friend}. "It is the best present of all!"',
            ),
            tale.sometimes(0.6, "They ate {food} and danced.", "Then everybody had some {food}."),
            *closing(
                tale,
                [
                    "{hero} learned that the best presents come from the heart.",
                    "{friend} put it in a special place and looked at it every day.",
                    "The two friends laughed and played until it was late.",
                ],
            ),
        ],
    ]


def star(tale: Tale) -> list[list[str]]:
    """A star has fallen from the sky and wants to go home."""
    kinds, way = tale.pick(
        [
            (["owl", "eagle", "swan"], "took the star on its back and flew up into the night"),
            (["spider", "caterpillar"], "made a long silver thread that reached up to the clouds"),
            (["giraffe", "horse"], "lifted the star up high, and it jumped into the sky"),
        ]
    )
    tale.name_helper(kinds)
    tale.words["way"] = way
    tale.words["ground"] = tale.pick(["in the grass", "under a bush", "beside the well", "on the path"])
    return [
        [
            tale.line(
                "That night {hero} could not sleep. Something bright was shining outside.",
                "When it was dark, {hero} saw a bright light fall from the sky.",
            ),
            tale.line("{He} ran outside and found a tiny star {ground}.", "There, {ground}, was a tiny star."),
            tale.line(
                '"I fell down," said the star. "I want to go home."',
                '"Please help me," said the star. "My mother is waiting in the sky."',
            ),
            tale.line('"Do not cry," said {hero}. "I will help you."', '"I will take you home," said {hero}.'),
        ],
        [
            tale.line(
                "{He} climbed the highest hill, but the sky was still too far away.",
                "{He} stood on a chair and threw the star up, but it fell down again.",
                "{He} put the star in a basket and climbed a tall tree, but it was not tall enough.",
            ),
            tale.line("Then {a_helper} came by.", "So {hero} went to ask {a_helper}."),
            tale.line('"Can you help us?" asked {hero}.', '"This star wants to go home," said {hero}. "Can you help?"'),
            tale.line('"I think so," said the {helper}.', '"Yes, I can," said the {helper}.'),
            tale.line("The {helper} {way}."),
        ],
        [
            tale.line('"Goodbye, and thank you!" called the star.', '"Thank you, my friends!" called the star.'),
            tale.line("{hero} waved for a long time.", "{hero} and the {helper} looked up and smiled."),
            *closing(
                tale,
                [
                    "And every night, one star shines a little brighter for {hero}.",
                    "Now, when {hero} looks up at night, one star always winks at {him}.",
                    "{hero} learned that even a star needs a friend.",
                ],
            ),
        ],
    ]


PLOTS = [lost, trouble, journey, cooking, fear, quarrel, garden, present, star]


def story(rng: random.Random) -> str:
    """One story. In the rare case that it is too short or too long, another one is made."""
    while True:
        tale = Tale(rng)
        first, *rest = tale.pick(PLOTS)(tale)
        paragraphs = [opening(tale) + first, *rest]
        text = "\n\n".join(" ".join(line for line in paragraph if line) for paragraph in paragraphs)
        if SHORTEST <= len(text.split()) <= LONGEST:
            return text


def stories(seed: str) -> Iterator[str]:
    """An endless stream of stories, always the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield story(rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", default="1")
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    for _, text in zip(range(args.count), stories(args.seed)):
        print(text, end="\n\n\n")


if __name__ == "__main__":
    main()
