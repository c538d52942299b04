"""What decode.py has finished, and from what: a run that was stopped goes on behind it.

Beside each recogs-NAME.txt lies finished-NAME.json, which holds checksums of the model, the graphs, the test set and
the recogs file, and the settings that results depend on. A result is taken over if all of these are the same; anything
else is decoded again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2 import __version__
from lowbit_k2.asr.model_io import LoadedModel, describe_tokenizer
from lowbit_k2.asr.recognizer import DecodeConfig, Models, Search, search_setups
from lowbit_k2.data.checked import digest
from lowbit_k2.data.filter import cut_text
from lowbit_k2.decode.method import METHODS
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, sha256, write_json
from lowbit_k2.scoring.recogs import read_hypotheses
from lowbit_k2.scoring.wer import Result
from lowbit_k2.tensorfile import tensors_checksum

if TYPE_CHECKING:
    from lhotse.cut import Cut

Origin = dict[str, Any]  # what a result was made from, as JSON


def model_digest(loaded: LoadedModel) -> str:
    """Checksum of the weights (averaged already), the configuration, the tokens and the feature settings."""
    quant = None if loaded.quant_config is None else loaded.quant_config.to_dict()
    config = [loaded.model_config.to_dict(), quant, describe_tokenizer(loaded.tokenizer), loaded.features]
    return tensors_checksum(sorted(loaded.model.state_dict().items()), digest(config).encode())


def origins(config: DecodeConfig, models: Models) -> dict[str, dict[Search, Origin]]:
    """What the results of each model (by label) and search are made from, the test set aside."""
    common = {"version": __version__, "model": model_digest(models.loaded), "on_the_fly_feats": config.on_the_fly_feats}
    common["chunking"] = config.chunking.to_dict()
    if config.packed is not None:
        common["packed"] = sha256(config.packed)
    common["plugins"] = [sha256(path) for path in config.plugins]
    searches = {}
    for search, setup in search_setups(config, models.loaded).items():
        found = [path for path in METHODS[search[0]].files(setup) if path.is_file()]
        files = [(path.name, sha256(path)) for path in found]  # two of them may have one name
        searches[search] = {**common, "search": setup.search.to_dict(), "files": files}
        if setup.rescoring is not None:
            lm = sha256(config.rescore_lm) if config.rescore_lm.is_file() else ""
            searches[search]["rescoring"] = {**asdict(setup.rescoring), "lm": lm}
        if config.lm_precision:
            searches[search]["lm_precision"] = config.lm_precision
    return {
        label: {key: {**origin, "bits": None if bits is None else dict(bits.bits)} for key, origin in searches.items()}
        for label, bits in models.allocations.items()
    }


def record_path(recogs: Path) -> Path:
    """`recogs-NAME.txt` -> `finished-NAME.json`."""
    return recogs.with_name(f"finished-{recogs.stem.removeprefix('recogs-')}.json")


def remember(recogs: Path, origin: Origin, notes: Mapping[str, Any]) -> None:
    """Write the record of a recogs file, with whatever else is to be said of it later."""
    write_json(record_path(recogs), {"made_from": origin, "recogs": sha256(recogs), **notes})


def recall(recogs: Path, origin: Origin, cuts: Iterable[Cut]) -> tuple[list[Result], dict[str, Any]] | None:
    """Results of an earlier call and the notes on them; None unless they were made from just this."""
    try:
        record = read_json(record_path(recogs))
        if record["made_from"] != json.loads(json.dumps(origin)) or record["recogs"] != sha256(recogs):
            return None
        hypotheses = read_hypotheses(recogs)
        results = [(cut.id, cut_text(cut).split(), hypotheses[cut.id]) for cut in cuts]
    except (UserError, OSError, KeyError, TypeError):
        return None  # not there, or damaged
    return results, record
