"""The sentences of the embedded corpus: a small grammar, so that few words recur in ever new orders.

The sentences are commands, dates, journeys, addresses, telephone numbers and shopping, written for this project.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from lowbit_k2.synthesis.grammar import Rules, expand, parse_grammar

GRAMMAR_TEXT = """
sentence: <date> | <date> | <date> | <journey> | <journey> | <command> | <command> | <command> | <number> |
  <shopping> | <address> | <place> | <weather> | <story> | <story> | <question>

date: <name> was born on the <ordinal> of <month> | the meeting with <name> is on <day> the <ordinal> | on
  the <ordinal> of <month> <name> left <city> | the <ordinal> of <month> <year> | the <spot> was built in
  <year> | we met in <city> in <year> | <day> the <ordinal> of <month> <year> | the <thing> came on <day>
  <clock>
journey: the <vehicle> to <city> leaves <clock> | the <vehicle> from <city> is <count> minutes late | take
  the <vehicle> to the <spot> and turn <side> | turn <side> at the <spot> and walk <count> miles | <name>
  drove from <city> to <city> | the next <vehicle> goes <compass> to the <spot> | go <compass> past the
  <spot> and over the <spot>
command: please <switch> the <device> in the <room> | meet <name> <clock> | <switch> the <device> and
  <switch> the <device> | set the alarm for <hour> | call <name> <clock> | send the <thing> to <name> on
  <day> | stop the <device> | read the letter from <name> again | open the window in the <room> | close the
  door of the <room> | write down the name of the <spot> | remind me to call <name> on <day> | erase line
  <digit> and start again
number: the number is <digit> <digit> <digit> <digit> <digit> | enter <digit> <digit> <digit> <digit> and
  repeat | my ticket has the number <digit> <digit> <digit> <digit> | dial <digit> <digit> <digit> and ask
  for <name> | <tens> plus <digit> makes <tens> <digit> | page <teen> line <tens> <digit>
shopping: add <food> and <food> to the list | <name> bought <count> <colour> <things> | we need <food>
  <food> and <food> | a cup of <drink> and some <food> please | <count> bottles of <drink> cost <tens>
  dollars | <name> sold the <colour> <thing> for <tens> dollars
address: <name> lives at <tens> <digit> <street> | the <spot> is near <street> in <city> | <name> and <name>
  moved to <street> | bring the <thing> to <teen> <street>
place: the <colour> <thing> is in the <room> | the <animal> is <where> the <spot> | there is a <adjective>
  <spot> in <city> | put the <thing> <where> the <colour> <thing>
weather: we expect <sky> in <city> on <day> | there was <sky> in <city> <clock> | after the <sky> it will be
  <warm> in <city> | <month> is a <warm> month in <city> | <month> was <warm> in <city>
story: the <adjective> <person> saw a <animal> <where> the <spot> | <name> gave the <adjective> <person> a
  <thing> | the <person> and the <person> went to the <spot> <daypart> | my <person> works at the <spot> in
  <city> | the <adjective> <animal> ran <compass> to the <spot> | every <day> the <person> brings <food> to
  <name> | <name> never forgot the <adjective> <person> of <city> | nobody knew why the <animal> was so
  <adjective>
question: how far is it from <city> to <city> | where did <name> put the <colour> <thing> | when does the
  <vehicle> to <city> leave | who is the <adjective> <person> with <name> | what time is it in <city> | can
  you see the <spot> from the <room>

clock: at <hour> | at half past <hourname> | at <hourname> <minutes> | <daypart>
hour: <hourname> o'clock | <hourname> <minutes> | noon | midnight
hourname: one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve
minutes: fifteen | twenty | thirty | forty five | ten | fifty
daypart: in the morning | in the evening | last night | this afternoon | yesterday | tomorrow
year: nineteen <tens> <digit> | twenty <teen> | eighteen <tens> <digit> | nineteen <teen>
count: two | three | four | five | six | seven | eight | nine | ten | eleven | twelve | twenty
digit: zero | one | two | three | four | five | six | seven | eight | nine
teen: ten | eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen | nineteen
tens: twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
ordinal: first | second | third | fourth | fifth | sixth | seventh | tenth | twelfth | fifteenth | twentieth
  | twenty first | thirtieth
month: january | february | march | april | may | june | july | august | september | october | november |
  december
day: monday | tuesday | wednesday | thursday | friday | saturday | sunday

name: anna | maria | peter | david | linda | thomas | alice | robert | helen | george | susan | martin |
  julia | oliver | nora | simon | emma | victor | clara | henry
city: london | paris | boston | dublin | vienna | madrid | cairo | sydney | tokyo | denver | oslo | lisbon |
  athens | toronto
spot: station | market | harbor | bridge | library | hospital | school | garden | museum | airport | castle
  | river | forest | office | hotel | church
street: king street | park avenue | mill road | castle lane | river street | garden avenue | oak road |
  market street
vehicle: train | bus | boat | plane | ferry
side: left | right
compass: north | south | east | west
switch: turn on | turn off | start | stop
device: light | radio | heating | fan | oven | camera | lamp | music | printer
room: kitchen | bedroom | bathroom | hall | cellar | attic | garage
thing: box | book | coat | bag | key | letter | table | chair | bottle | picture | ticket | hammer | blanket
things: boxes | books
colour: red | blue | green | yellow | white | black | brown | orange
food: bread | butter | cheese | apples | rice | sugar | soup | fish | onions | honey
drink: coffee | tea | milk | water | juice
animal: horse | dog | cat | sheep | bird | lion | rabbit | wolf
adjective: old | young | small | large | quiet | happy | clever | tired | strange | famous
person: doctor | teacher | farmer | brother | sister | mother | father | captain | driver | stranger
where: behind | near | under | beside | in front of
sky: rain | snow | wind | fog | sunshine | thunder
warm: warm | cold | wet | dry
"""


def distinct_sentences(seed: int) -> Iterator[str]:
    """Endlessly yield different sentences in lower case, in an order that `seed` alone decides.

    No sentence comes twice, so that dev and test hold none of the training sentences.
    """
    rules = parse_grammar(GRAMMAR_TEXT)
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        sentence = expand(rules, "sentence", rng)
        if sentence not in seen and not _repeats_a_name(sentence, rules):
            seen.add(sentence)
            yield sentence


def _repeats_a_name(sentence: str, rules: Rules) -> bool:
    """True where a person, city or device comes twice ("from paris to paris")."""
    words = sentence.split()
    names = [w for w in words if w in _repeatless(rules)]
    return len(names) != len(set(names))


def _repeatless(rules: Rules) -> set[str]:
    return {word for rule in ("name", "city", "device", "food", "person") for word in rules[rule]}
