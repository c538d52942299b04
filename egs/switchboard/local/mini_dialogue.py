"""What the callers of the embedded corpus say to each other: small talk from a grammar written for this project.

Few words recur in ever new sentences, as in the other embedded corpora; what makes it telephone talk are the turns,
the back-channels, hesitations, repetitions, broken-off words and laughter, written as ISIP's transcripts of
Switchboard (ms98) write them: `th[at]-`, `because_1` ('cause), `[laughter]`, `[laughter-yeah]`, `[noise]`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lowbit_k2.synthesis.grammar import Rules, draw, expand, parse_grammar, uniform_int, vocabulary

TOPICS = ("weather", "family", "cars", "cooking", "music", "work", "vacations")
HESITATIONS = ("uh", "um")
EVENTS = ("[laughter]", "[noise]", "[vocalized-noise]")
# word -> how it is written when broken off, and what a voice says then
PARTIALS = {
    "that": ("th[at]-", "the"),
    "that's": ("th[at's]-", "the"),
    "what": ("wh[at]-", "wuh"),
    "have": ("ha[ve]-", "ha"),
    "going": ("go[ing]-", "go"),
    "we": ("w[e]-", "wuh"),
    "my": ("m[y]-", "muh"),
    "some": ("s[ome]-", "suh"),
}
REPEATED = {"i", "the", "we", "my", "it's", "in"}
MAX_DRAWS = 200  # of a statement that is new
SAID = {"because_1": "cuz", **dict(PARTIALS.values())}  # written -> said, where they differ
# Seconds of an average sentence = pauses + words at rate 170; a least-squares fit to the synthesized segments.
SECONDS_PER_SENTENCE, SECONDS_PER_WORD = 0.33, 0.273

GRAMMAR_TEXT = """
weather_ask: how's the weather in <city> | what is the weather like in <city> | does it <fall> a lot in <city> |
  is it <warm> there in the <season> | do you get much <sky> in <month>
weather_tell: it's been <warm> and <warm> here <when> | we had <sky> and <sky> <when> | it was <tens> degrees
  <when> | the <season> in <city> is always <warm> and <warm> | i like the <season> because_1 it's <warm> | last
  <season> we got <count> inches of <fall> | they say it's going to <fall> on <day> | we don't get much <sky> in
  <month> | it's <warm> in <month> but <month> is <warm>
family_ask: how many <kids> do you have | do you have any <kids> | how old is your <relative> | does your
  <relative> live in <city> | what does your <relative> do | how's your <relative>
family_tell: i have <count> <kids> and they're all in school | my <relative> is <tens> years old | my <relative>
  lives in <city> now | my <relative> and my <relative> moved to <city> <when> | we see my <relative> every <day>
  | my <relative> is in college in <city> | the <kids> call my <relative> on <day> | my <relative> has <count>
  <kids> | <name> is the name of my <relative> | my <relative> married <name> in <month>
cars_ask: what kind of <vehicle> do you drive | is your <vehicle> <state> | how many miles does your <vehicle>
  have | did you buy a <state> <vehicle> | do you like your <colour> <vehicle>
cars_tell: i drive a <state> <colour> <vehicle> | my <vehicle> has <tens> thousand miles on it | we bought a
  <state> <vehicle> <when> | my <relative> drives a <colour> <vehicle> | the <part> broke <when> and it cost
  <tens> dollars | i had to fix the <part> on my <vehicle> | i want to buy a <colour> <vehicle> next <season> |
  the <part> on the <vehicle> is <state>
cooking_ask: what do you like to cook | do you cook <meal> every day | have you ever made <dish> with <food> |
  what do you put in your <dish> | who made <meal> <when>
cooking_tell: i make <dish> with <food> and <food> | my <relative> makes the best <dish> | we have <dish> for
  <meal> on <day> | you put the <food> in the oven for <tens> minutes | you need <count> cups of <food> and some
  <food> | i don't eat much <food> | we grow <food> and <food> in our garden | i put <food> in the <dish> | we
  don't have any <food> in the house | we buy <colour> <food> every <day> | my <relative> made <dish> for <meal>
music_ask: what kind of music do you like | do you play the <instrument> | do you listen to <genre> | have you
  been to a concert in <city> | does your <relative> play the <instrument>
music_tell: i listen to <genre> and some <genre> | i played the <instrument> for <count> years | my <relative>
  plays the <instrument> in a band | we went to a <genre> concert in <city> <when> | i like <genre> but i don't
  like <genre> | i hear <genre> on the radio every <day> | the <kids> are learning the <instrument>
work_ask: what do you do for work | where do you work | how long have you worked there | who is your boss | do you
  start at <hour>
work_tell: i'm a <job> in <city> | i worked as a <job> for <count> years | i work <tens> hours a week | my
  <relative> is a <job> too | we start at <hour> in the morning | i get <count> weeks of vacation | i've been a
  <job> for <count> years | i drive <tens> miles to work every <day> | my <relative> wants to be a <job> | my boss
  is <name>
vacations_ask: where did you go on your vacation | have you ever been to <city> | how long did you stay in <city>
  | do you like to go to the <spot> in the <season>
vacations_tell: we went to <city> in <month> | we drove to the <spot> with my <relative> | we stayed at the <spot>
  for <count> days | we like to stay at the <spot> in <city> | my <relative> and i went to <city> on <day> | it
  took <count> hours to drive to <city> | next <season> we're going to the <spot> near <city> | the <kids> like
  the <spot> the best | we took the <vehicle> and drove <tens> miles to the <spot>

agree: that's right | i know what you mean | that's true | that sounds good | oh really | that's interesting | is
  that right | well that's nice | that's a lot | i think so too | i know it | oh that's great
backchannel: uh-huh | uh-huh | uh-huh | yeah | yeah | yeah | right | right | um-hum | oh | okay | oh yeah | i see
  | huh
starter: well | so | and | but | you know | i mean | i think | i guess | oh | yeah
topic: okay they want us to talk about <topicname> | so the topic is <topicname> | well let's talk about
  <topicname>
topicreply: okay i like to talk about <topicname> | well i don't know much about <topicname> | good i can talk
  about <topicname> all day
topicname: weather | family | cars | cooking | music | work | vacations
hello: hi this is | hello this is | hi my name is | hello i'm
from: i'm from | i'm calling from | i live in
close: well it was nice talking to you | okay i have to go now | you have a good <daypart> | it was good to talk
  to you
bye: okay you too bye-bye | thanks bye-bye | you too bye | it was nice talking to you too bye

name: anna | mary | peter | david | linda | tom | alice | robert | helen | george | susan | martin
city: dallas | boston | denver | chicago | houston | atlanta | seattle | austin | detroit | memphis
month: january | march | april | may | june | july | august | october | november | december
day: monday | tuesday | wednesday | thursday | friday | saturday | sunday
season: spring | summer | fall | winter
when: last week | last night | this morning | yesterday | last <season> | on <day>
daypart: day | night | week
warm: warm | cold | wet | dry | hot | cloudy | nice
sky: rain | snow | wind | fog | sunshine
fall: rain | snow
tens: twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
count: two | three | four | five | six | seven | eight | nine | ten | twelve
hour: six | seven | eight | nine | ten
kids: kids | boys | girls | children
relative: wife | husband | mother | father | brother | sister | son | daughter | uncle | cousin
vehicle: car | truck | van | bike
part: engine | window | brakes | door | radio | heater
state: new | nice | big | small | good
colour: red | blue | green | white | black | brown
meal: breakfast | lunch | dinner
dish: soup | salad | pizza | chili | bread | cake
food: chicken | rice | beans | cheese | fish | corn | sugar | onions | apples | tomatoes
instrument: piano | guitar | drums | violin
genre: jazz | country music | rock and roll | opera | folk songs
job: teacher | nurse | driver | doctor | farmer | lawyer | secretary
spot: beach | lake | mountains | river | zoo | hotel | park
"""
RULES = parse_grammar(GRAMMAR_TEXT)


@dataclass(frozen=True)
class Sentence:
    """Written words in their order, said in one breath; questions get their melody."""

    words: tuple[str, ...]
    is_question: bool = False


@dataclass(frozen=True)
class Turn:
    """What one side says until the other one does.

    `is_over` marks a back-channel that is said while the other side still speaks.
    """

    side: str  # "A" or "B"
    sentences: tuple[Sentence, ...]
    is_over: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(w for s in self.sentences for w in s.words)


def said(word: str) -> str:
    """What a voice says for a written word (for `[laughter-yeah]` "yeah")."""
    plain = word.removeprefix("[laughter-").removesuffix("]") if word.startswith("[laughter-") else word
    return SAID.get(plain, plain)


def spoken_words() -> list[str]:
    """All words that can be written but events, sorted: the grammar's, the broken-off ones, those said laughing."""
    laughing = [f"[laughter-{w}]" for w in ("yeah", "right", "okay")]
    return sorted({*vocabulary(RULES), *HESITATIONS, *(p for p, _ in PARTIALS.values()), *laughing})


def estimate_seconds(turn: Turn, rate: int) -> float:
    """About how long the turn will take at `rate` of espeak-ng's words a minute."""
    return len(turn.sentences) * SECONDS_PER_SENTENCE + len(turn.words) * SECONDS_PER_WORD * 170 / rate


class Writer:
    """Writes dialogues; no statement comes twice from one writer while the grammar has new ones to make."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def dialogue(self, topic: str, names: dict[str, str], rng: random.Random) -> Iterator[Turn]:
        """Endless talk on a topic after both sides have said who they are; see `closing` for its end.

        Args:
          names: side -> the caller's name.
        """
        yield Turn("A", (self._sentence(f"{draw(RULES['hello'], rng)} {names['A']}", rng), self._home(rng)))
        yield Turn("B", (self._sentence(f"{draw(RULES['hello'], rng)} {names['B']}", rng), self._home(rng)))
        for side, rule in (("A", "topic"), ("B", "topicreply")):
            text = draw(RULES[rule], rng).replace("<topicname>", topic)
            yield Turn(side, (self._sentence(text, rng),))
        talker, listener = "B", "A"
        while True:
            if rng.random() < 0.3:
                yield Turn(talker, (self._sentence(expand(RULES, f"{topic}_ask", rng), rng, is_question=True),))
                talker, listener = listener, talker
            yield Turn(talker, tuple(self._tell(topic, rng) for _ in range(uniform_int(rng, 1, 3))))
            if rng.random() < 0.7:
                yield Turn(listener, (self._backchannel(rng),), is_over=rng.random() < 0.35)
            if rng.random() < 0.3:
                yield Turn(listener, (self._sentence(expand(RULES, "agree", rng), rng),))
            if rng.random() < 0.5:
                talker, listener = listener, talker

    def closing(self, side: str, rng: random.Random) -> Iterator[Turn]:
        """`side` ends the call."""
        yield Turn(side, (self._sentence(expand(RULES, "close", rng), rng),))
        yield Turn("B" if side == "A" else "A", (self._sentence(expand(RULES, "bye", rng), rng),))

    def _home(self, rng: random.Random) -> Sentence:
        return self._sentence(f"{draw(RULES['from'], rng)} {draw(RULES['city'], rng)}", rng)

    def _tell(self, topic: str, rng: random.Random) -> Sentence:
        """A statement that, while there are any, nobody made before; with a starter now and then."""
        for _ in range(MAX_DRAWS):
            text = expand(RULES, f"{topic}_tell", rng)
            if text not in self._seen and not repeats_a_word(text, RULES):
                break
        self._seen.add(text)
        starter = f"{draw(RULES['starter'], rng)} " if rng.random() < 0.3 else ""
        return self._sentence(starter + text, rng)

    def _backchannel(self, rng: random.Random) -> Sentence:
        words = expand(RULES, "backchannel", rng).split()
        if words[-1] in ("yeah", "right", "okay") and rng.random() < 0.1:
            words[-1] = f"[laughter-{words[-1]}]"
        return Sentence(tuple(words))

    def _sentence(self, text: str, rng: random.Random, is_question: bool = False) -> Sentence:
        return Sentence(tuple(disturb(text.split(), rng)), is_question)


def repeats_a_word(text: str, rules: Rules) -> bool:
    """True where a month, relative, food ... comes twice ("rice and rice")."""
    names = {w for rule in ("warm", "sky", "month", "relative", "food", "genre") for w in rules[rule]} - {
        "music",
        "and",
    }
    found = [w for w in text.split() if w in names]
    return len(found) != len(set(found))


def disturb(words: list[str], rng: random.Random) -> Iterator[str]:
    """The words with what comes between them when people talk: hesitations, repetitions, laughter."""
    for number, word in enumerate(words):
        chance = rng.random()
        if chance < 0.02 + 0.06 * (number == 0):
            yield draw(HESITATIONS, rng)
        elif chance > 0.95 and word in REPEATED:
            yield word
        elif chance > 0.91 and word in PARTIALS:
            yield PARTIALS[word][0]
        yield word
    if rng.random() < 0.08:
        yield draw(EVENTS, rng)
