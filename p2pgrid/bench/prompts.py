"""Questions of people, for what random tokens cannot show: drafts live from what a text says twice."""

from p2pgrid.engine.tokenizer import Tokenizer

_REPEAT = "Repeat the following text word for word:\n\n"

_MENU = """Monday: tomato soup with rice and a green salad.
Tuesday: fried herring with boiled potatoes and dill.
Wednesday: lentil stew with carrots, celery and bacon.
Thursday: pancakes with apple sauce and cinnamon.
Friday: baked cod with spinach and lemon butter.
Saturday: pea soup with dark bread and mustard.
Sunday: roast chicken with red cabbage and dumplings.
Next Monday: mushroom soup with barley and chives.
Next Tuesday: meatballs with gravy and cranberries.
Next Wednesday: noodles with cheese and roasted onions."""

_CODE = """class Account:
    def __init__(self, owner, balance):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        self.balance = self.balance + amount

    def withdraw(self, amount):
        if amount > self.balance:
            print("not enough money")
        else:
            self.balance = self.balance - amount

    def transfer(self, other, amount):
        self.withdraw(amount)
        other.deposit(amount)

    def report(self):
        print(self.owner, self.balance)"""

_RECIPE = """1. Wash the potatoes and cut them into thin slices.
2. Heat two spoons of oil in a large iron pan.
3. Fry the potatoes for fifteen minutes and turn them often.
4. Add one onion, cut into rings, and fry for five more minutes.
5. Beat four eggs with salt, pepper and a little milk.
6. Pour the eggs over the potatoes and let them set.
7. Sprinkle with parsley and serve at once with bread.
8. Wash the pan with hot water and no soap.
9. Dry it and rub it with a drop of oil.
10. Hang it on the hook beside the stove."""

_TEXTS = (
    "The tide mill at Nordhaven was built in 1742 by two brothers, Anders and Mikkel Vester, who had lost their"
    " windmill in a storm. Twice a day the sea filled a pond behind the dam, and twice a day the water ran out"
    " again under the great oak wheel. In good years the mill ground forty sacks of rye between two tides. When"
    " the railway came in 1871, flour from the plains was cheaper, and the wheel stood still. Today the building"
    " is a small museum, and on the first Sunday of May the wheel turns once more, while the baker of the village"
    " sells bread at the door.",
    "Dear Mrs. Holloway, thank you for your letter of the ninth of March about the broken gate behind the school."
    " Our carpenter came to look at it on Tuesday morning. Two of the hinges have rusted through, and the lower"
    " board must be replaced as well. He will bring new hinges from the town on Friday and expects to finish the"
    " work before noon. Until then, please ask the children to use the entrance on Mill Street. The costs will be"
    " shared between the parish and the council, as we agreed last year. With kind regards, Edward Finch, clerk of"
    " the parish.",
    _MENU,
    _CODE,
    _RECIPE,
)

QUOTING = tuple(_REPEAT + text for text in _TEXTS)
"""Greedy answers of the small model the benchmarks use copy most of each, for more than 100 tokens."""

ORDINARY = (
    "Why do leaves change their colour in autumn?",
    "What should somebody think of before buying an old house?",
    "What makes a good teacher?",
    "Explain to a child why the sea is salty.",
    "How does a refrigerator keep food cold?",
)
"""Their answers say little twice."""


def prompt_ids(tokenizer: Tokenizer, question: str) -> tuple[int, ...]:
    """Token ids of a question in the model's chat template. Raises BadInput for a model without one."""
    return tuple(tokenizer.chat([{"role": "user", "content": question}]))
