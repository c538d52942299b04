"""Rules: which label, called a role, a parameter gets. Ordered pairs (pattern, role); the first that matches wins.

A pattern is a glob on the plain parameter name (`*` matches dots, too), or `class:` and names of module classes,

    ("blocks.*.weight", "mine"), ("class:Conv1d|Conv2d", "convolution"), ("class:*Norm", "norm")

where the module that owns the parameter, or one of its base classes, must have one of the names (globs again). A role
is free text: it joins a rule to a scheme of the config, and stands in reports and packed files.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from lowbit_k2.errors import UserError

CLASS_PREFIX = "class:"
Rules = tuple[tuple[str, str], ...]

# By the names of this project's models.
NAME_RULES: Rules = (
    ("class:MatrixProduct", "product"),  # of two activations; by its class, since it lies in attention
    ("*.norm.*", "norm"),
    ("*.norm_*", "norm"),
    ("norm.*", "norm"),
    ("*bias", "bias"),
    ("*.pos_bias_[uv]", "bias"),
    ("*.attention.*", "attention"),  # query, key, value, out and position projections
    ("encoder.layers.*.conv.*", "convolution"),  # the convolution module: pointwise and depthwise
    ("encoder.layers.*", "encoder_linear"),  # feed-forward matrices
    ("*subsampling.*", "subsampling"),
    ("*embedding.*", "embedding"),
    ("decoder.*", "decoder"),
    ("joiner.*", "joiner"),
    ("ctc_head.*", "output"),
    ("simple.*", "training_only"),  # the two linears of the pruned transducer loss
    ("xent_head.*", "training_only"),  # the second head of LF-MMI
)
# By the kind of module, for what no name says.
CLASS_RULES: Rules = (
    ("class:_NormBase|*Norm", "norm"),  # _NormBase: batch and instance norms
    ("*bias_[kv]", "bias"),  # of MultiheadAttention, three-dimensional
    ("class:Embedding|EmbeddingBag", "embedding"),
    ("class:MultiheadAttention", "attention"),
    ("class:Linear", "linear"),
    ("class:_ConvNd", "convolution"),
    ("class:QuantizableRNN", "linear"),  # after `replace_rnns`
    ("class:RNNBase", "recurrent"),  # torch's own, whose weights no quantizer reaches
)
DEFAULT_RULES: Rules = (*NAME_RULES, *CLASS_RULES)


def checked_rules(rules: object) -> Rules:
    """The rules as a tuple of pairs of text.

    Raises:
      UserError: they are anything else.
    """
    hint = 'rules are pairs (pattern, role), as (("*bias", "bias"), ("class:Linear", "linear"))'
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise UserError(f"{hint}, not {rules!r}")
    pairs = []
    for rule in rules:
        pair = tuple(rule) if isinstance(rule, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise UserError(f"{hint}, not {rule!r}")
        if pair[0].startswith(CLASS_PREFIX) and not all(pair[0][len(CLASS_PREFIX) :].split("|")):
            raise UserError(f"rule {pair!r} names no class after {CLASS_PREFIX}")
        pairs.append(pair)
    return tuple(pairs)


def match_role(rules: Rules, name: str, owner: type | None = None) -> str | None:
    """Role of a parameter by its plain name and the class of its module; None where no rule matches.

    Without a class, as for a tensor known by its name alone, the rules by class match nothing.
    """
    for pattern, role in rules:
        if pattern.startswith(CLASS_PREFIX):
            if owner is not None and _is_of_class(pattern, owner):
                return role
        elif fnmatchcase(name, pattern):
            return role
    return None


@lru_cache(maxsize=4096)
def _is_of_class(pattern: str, owner: type) -> bool:
    wanted = pattern[len(CLASS_PREFIX) :].split("|")
    return any(fnmatchcase(base.__name__, name) for base in owner.__mro__ for name in wanted)
