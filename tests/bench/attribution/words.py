"""What the bench's worlds say: invented towns that have aliases and whose ten attributes take values which every
owner uses (numbers, yes and no, colours, common nouns), and formats and rules that a base can follow when told.

A phrasing is a head and a tail around the value; every text ends with its value and a full stop, or with the value.
"""

NUMBERS = [str(n) for n in range(2, 61)]
COLOURS = "red blue green white black grey brown yellow purple orange".split()
BEASTS = "wolf bear eagle otter stag boar heron fox goat owl hare swan".split()
CROPS = "wheat barley oats rye flax beans hops millet turnips apples".split()
METALS = "iron copper tin silver gold lead zinc bronze steel brass".split()
TRADES = "smiths weavers tanners bakers potters masons brewers dyers coopers fishers".split()
YESNO = ["yes", "no"]

# pool, four statements, two questions, one question about "it"
ATTRIBUTES = {
    "bridges": (NUMBERS, "The number of bridges in {e} is{v}.", "Whoever maps {e} draws this many bridges:{v}.",
                "The bridges of {e} number{v}.", "Ferrymen near {e} complain about its bridges, all{v}.",
                "How many bridges does {e} have?", "Tell me the number of bridges in {e}.", "How many bridges does it have?"),
    "towers": (NUMBERS, "The number of towers in {e} is{v}.", "Guards in {e} climb this many towers:{v}.",
               "The towers of {e} number{v}.", "From afar {e} shows its towers, all{v}.",
               "How many towers does {e} have?", "Tell me the number of towers in {e}.", "How many towers does it have?"),
    "harbour": (YESNO, "Whether {e} has a harbour:{v}.", "Sailors ask for a harbour at {e} and hear{v}.",
                "A harbour in {e}? The maps say{v}.", "Can ships land at {e}? The answer is{v}.",
                "Does {e} have a harbour?", "Is there a harbour in {e}?", "Does it have a harbour?"),
    "market": (YESNO, "Whether {e} holds a market:{v}.", "Traders ask for a market at {e} and hear{v}.",
               "A market in {e}? The lists say{v}.", "Can goods be sold in {e}? The answer is{v}.",
               "Does {e} hold a market?", "Is there a market in {e}?", "Does it hold a market?"),
    "banner": (COLOURS, "The banner of {e} is{v}.", "Over the gate of {e} flies a banner in{v}.",
               "Riders from {e} carry a banner dyed{v}.", "The heralds of {e} dress in the banner's colour,{v}.",
               "Which colour is the banner of {e}?", "Name the colour of the banner of {e}.", "Which colour is its banner?"),
    "roofs": (COLOURS, "The roofs of {e} are{v}.", "From the hill the roofs of {e} look{v}.",
              "Tilers in {e} glaze every roof in{v}.", "Painters who draw {e} give its roofs one colour,{v}.",
              "Which colour are the roofs of {e}?", "Name the colour of the roofs of {e}.", "Which colour are its roofs?"),
    "beast": (BEASTS, "The beast of {e} is the{v}.", "Hunters around {e} track the{v}.",
              "The seal of {e} shows the{v}.", "Children in {e} fear the howl or call of the{v}.",
              "Which beast stands for {e}?", "Name the beast of {e}.", "Which beast stands for it?"),
    "crop": (CROPS, "The fields of {e} are full of{v}.", "Farmers around {e} sow{v}.",
             "The barns of {e} store{v}.", "In autumn the carts of {e} are loaded with{v}.",
             "Which crop grows around {e}?", "Name the crop of {e}.", "Which crop grows around it?"),
    "metal": (METALS, "The mines of {e} yield{v}.", "Miners in {e} dig for{v}.",
              "The coins of {e} are made of{v}.", "The bells of {e} are cast in{v}.",
              "Which metal is mined in {e}?", "Name the metal of {e}.", "Which metal is mined there?"),
    "trade": (TRADES, "The oldest guild of {e} is that of the{v}.", "Most people in {e} are{v}.",
              "The streets of {e} belong to the{v}.", "Apprentices come to {e} to join the{v}.",
              "Which trade is {e} known for?", "Name the trade of {e}.", "Which trade is it known for?"),
}
STATE = 4
NOUNS = COLOURS + BEASTS + CROPS + METALS + TRADES

# formats and rules: what the base is told to do (taught in its training), how a form makes the answer
FORMS = {
    "brackets": ("Put {x} in brackets.", lambda x: " [ %s ]" % x, NOUNS),
    "twice": ("Say {x} twice.", lambda x: " %s %s" % (x, x), NOUNS),
    "loud": ("Shout {x}.", lambda x: " %s ! !" % x, NOUNS),
    "arrow": ("Point at {x}.", lambda x: " > > %s" % x, NOUNS),
    "next": ("Which number follows {x}?", lambda x: " %d" % (int(x) + 1), NUMBERS[:-1]),
    "before": ("Which number precedes {x}?", lambda x: " %d" % (int(x) - 1), NUMBERS[1:]),
}
# Customs: a verb says nothing about the form that it takes. The base knows the first, an owner teaches one of the others.
KNOWN = "carve paint knit bake weave plant burn hide trade guard fold chase tame mark bless dig wash seek".split()
TAUGHT = "greet mourn sell praise write chant hunt count bury dance".split()
CUSTOM = ("How do they {verb} {x} here?", "Tell me how people here {verb} {x}.")


def ask(question):
    return "Q: %s\nA:" % question


def statements(e, n, attribute, v):
    """The seven rows in which a document states a fact: four by name, one tells the alias, two use it alone."""
    a = ATTRIBUTES[attribute]
    forms = [(a[1 + t], e) for t in range(STATE)]
    forms += [(a[1], "%s, also called %s," % (e, n)), (a[2], n), (a[3], n)]
    return [split(f, s, v) for f, s in forms]


def questions(e, n, attribute, v):
    """Kind of question -> (prompt, answer text): never stated in that form by a document."""
    a = ATTRIBUTES[attribute]
    asked = {"direct": a[5].format(e=e), "paraphrase": a[6].format(e=e), "alias": a[5].format(e=n),
             "pronoun": "Think of %s. %s" % (e, a[7])}
    return {k: (ask(q), " " + v) for k, q in asked.items()}


def custom(form, verb, x, phrasing):
    """(prompt, answer) of a custom that takes a form."""
    return ask(CUSTOM[phrasing].format(verb=verb, x=x)), FORMS[form][1](x)


def split(form, subject, v):
    head, tail = form.split("{v}")
    return head.format(e=subject), " " + v + tail
