"""RESULTS.md's tables of how models fail, and of every byte: CTC and transducers, in float, 2 bits and 1 bit."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from result_files import RESULTS, result_path
from systems import COLUMNS, FAMILIES, LSTMS, REFERENCE, SYSTEMS, Row

from lowbit_k2.asr.dry_run import FEATURES
from lowbit_k2.asr.model_io import LoadedModel, build_model
from lowbit_k2.asr.result_files import kept_recogs
from lowbit_k2.asr.training import TrainingConfig
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.export import pack_model
from lowbit_k2.fileio import read_json
from lowbit_k2.packed import next_steps, read_packed, size_table
from lowbit_k2.quant import Allocation, use_precision
from lowbit_k2.scoring.detail import RUNS, detail, format_runs, group_rows
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.tables import markdown_table

AUDIT = RESULTS / "audit.json"
FAILING = (  # name, seed, bits
    (REFERENCE, 1, "32"),
    ("hand16", 1, "1"),
    (REFERENCE, 2, "32"),
    ("hand2", 2, "2"),
    ("float-noise", 1, "32"),
    ("hand16-noise", 1, "1"),
    *((name, seed, bits) for seed in (1, 2) for name, bits in LSTMS),
)
AUDITED = (
    (REFERENCE, "32"),
    ("cotrain-plain", "2"),
    ("hand16", "1"),
    ("rnnt-float", "32"),
    ("rnnt-cotrain-plain", "2"),
    ("rnnt-cotrain-plain", "1"),
    *LSTMS,
)
PARTS = {  # of a model, by the roles of its tensors
    "front end": ("subsampling",),
    "encoder": ("encoder_linear", "attention", "convolution"),
    "prediction, joiner, output": ("embedding", "decoder", "joiner", "output"),
    "norms, biases": ("norm", "bias"),
}


def failures_table() -> str:
    """Runs of deleted words, and errors by the length of the utterance: systems that were decoded, on the test set."""
    systems, lines = {}, []
    for name, seed, bits in FAILING:
        row = Row(SYSTEMS[name], seed)
        if not result_path(row).is_file():
            continue
        for method in row.system.methods:
            own = detail(read_recogs(kept_recogs(result_path(row), bits, method)))
            systems[f"{row.key}-{bits}-{method}"] = own.lengths
            s = own.stats
            counts = [f"{s.ins}/{s.dels}/{s.sub}", format_runs(own.runs), str(own.longest)]
            label = FAMILIES[row.system.methods][0] + (", in noise" if name.endswith("-noise") else "")
            lines.append([label, bits, str(seed), COLUMNS[method], f"{100 * s.rate:.2f}", *counts])
    head, groups = group_rows(systems)
    lines = [[*line, *cells] for line, (_, *cells) in zip(lines, groups, strict=True)]
    runs = f"del {'/'.join(f'{n}+' for n in RUNS)}"
    columns = [
        "model",
        "bits",
        "seed",
        "search",
        "WER",
        "ins/del/sub",
        runs,
        "longest",
        *(f"{n} words" for n in head[1:]),
    ]
    return markdown_table(columns, lines)


# --- every byte ----------------------------------------------------------------------------------------------------


def audit(config: TrainingConfig, bits: str) -> dict[str, Any]:
    """The packed file of a row's model, untrained, which takes as many bytes as a trained one, and its next steps.

    Args:
      config: of the row's training.
    """
    tokens, quant = load_tokenizer(config.run.tokens), config.quant_config()
    model_config = config.model_config(tokens.vocab_size, FEATURES.num_mel_bins)
    model, _ = build_model(model_config, quant)
    loaded = LoadedModel(model.eval(), model_config, quant, tokens, FEATURES.to_dict())
    with tempfile.TemporaryDirectory(prefix="lowbit_k2-") as folder:
        path = Path(folder) / "packed.safetensors"
        with use_precision(model, Allocation.parse(bits, model_config.num_layers, quant.layer_prefix)):
            pack_model(loaded, path)
        packed = read_packed(path)
        sizes = size_table(packed)
        return {**sizes.to_dict(), "next": [asdict(step) for step in next_steps(packed.tensors, sizes.file.total)]}


def audit_table() -> str:
    """Where the bytes are; they add up to the file."""
    lines, known = [], read_json(AUDIT)
    for name, bits in AUDITED:
        found = known[f"{name}-{bits}"]
        by_part = [sum(t["num_bytes"] for t in found["tensors"] if t["role"] in roles) for roles in PARTS.values()]
        total, best = found["file"]["total"], max(found["next"], key=lambda step: step["saved"])
        sizes = [f"{n:,}" for n in (*by_part, total - sum(by_part), total)]
        ratios = [f"{found['bits']:.2f}", *(f"{found[f'float{b}_ratio']:.2f}" for b in (32, 16))]
        step = f"{best['role']} {best['encoding']} to {best['to']}: {-best['saved']:,}"
        lines.append([FAMILIES[SYSTEMS[name].methods][0], bits, *sizes, *ratios, step])
    head = [
        "model",
        "bits",
        *PARTS,
        "header, index, tokens",
        "file",
        "bits a parameter",
        "float32 / file",
        "float16 / file",
    ]
    return markdown_table([*head, "next step that saves most"], lines)
