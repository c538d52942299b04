#!/usr/bin/env python3
"""HuBERT by scheme and bits on a tiny model: pre-train, distil each row, and probe what its hidden states are good for.

./local/prepare_manifests.py --corpus-dir LibriSpeech --parts "train-clean-100 dev-clean" --manifest-dir data/pieces
./local/rows_hubert.py make --librispeech-manifests data/pieces --keywords-dir keywords        # all rows
./local/rows_hubert.py make --only float,bit-la-1,co-trained-1
./local/rows_hubert.py table --output results/hubert.json
./local/rows_hubert.py results                                 # results/hubert.json -> the tables of RESULTS-hubert.md

Needs what egs/an4/prepare.sh makes (--an4-data). A row that is done is not made again; one that was stopped goes on.
Every row is distilled from the same float model, on the same batches, for as many updates. On its frozen states AN4's
recogniser is trained, and classifiers of keywords and of AN4's speakers. `filter-banks` is that recogniser without a
HuBERT.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from hubert_table import (
    COUNTED_SECONDS,
    FBANK,
    FLOAT,
    PAGE,
    PROBES,
    RECIPE,
    ROWS,
    SEARCHES,
    Row,
    compared,
    counts_of,
    format_claims,
    format_rows,
    without_counts,
    write_results,
)
from scripts import chosen_rows, run_script

from lowbit_k2.asr.compared_states import compare
from lowbit_k2.asr.decoding import run_decode
from lowbit_k2.asr.exporting import ExportConfig, run_export
from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.packed_matrices import time_matrices
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.asr.representations import Representation, SpeechConfig
from lowbit_k2.asr.training import describe_machine
from lowbit_k2.asr.utterance_probe import ProbeConfig, held_out, probe
from lowbit_k2.core.hubert import SAMPLING_RATE
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.manifests import cuts_path, load_cuts, write_manifests
from lowbit_k2.data.preparation import speech_cuts
from lowbit_k2.data.sources import recording_of
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write, read_json, write_json
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.runtime.native import library
from lowbit_k2.scoring.wer import Result, score
from lowbit_k2.train.checkpoint import load_checkpoint, numbered
from lowbit_k2.train.distributed import DistributedContext

EVERY = 3  # so manieth utterance: what is distilled on, and validated on
SPEECH, KEYWORDS, AN4 = "both", "keywords", "an4"
FRAMES, MODES = 50 * COUNTED_SECONDS, ("a16", "a8")  # the runtime's arithmetic for float activations, and for others
WORDS, SPEAKERS = (KEYWORDS, "text", ("all",)), (AN4, "speaker", ("train", "dev"))


class Table:
    """The rows under one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.root = args, args.exp_root
        self.an4, self.manifests = args.an4_data / "manifests", args.exp_root / "manifests"
        self.threads = ["--num-threads", args.num_threads]

    def result(self, name: str) -> Path:
        """Where the numbers of a row are."""
        return self.root / f"result-{name}.json"

    @property
    def pretrained(self) -> Path:
        """The float model that all begin with."""
        return self.root / FLOAT / f"epoch-{self.args.float_epochs}.pt"

    def make(self, name: str) -> None:
        """Train a row, probe its hidden states, and leave its numbers in the folder."""
        if self.result(name).is_file():
            return
        start = time.perf_counter()
        if name == FBANK:
            own = {"asr": self.recognise(name, self.filter_banks(), num_states=1)}
        else:
            own = self.measure(name, self.trained(ROWS[name]))
        _, versions, _, machine = describe_machine(torch.device("cpu"), DistributedContext())
        own |= {"date": time.strftime("%Y-%m-%d"), "minutes": round((time.perf_counter() - start) / 60, 1)}
        own["commits"] = {part: commits_of(folder) for part, folder in self.trainings(name).items()}
        write_json(self.result(name), own | {"machine": [versions, machine]})

    def trainings(self, name: str) -> dict[str, Path]:
        """Folders of what was trained for a row."""
        own = {} if name == FBANK else {"training": self.root / ROWS[name].of}
        return {**own, "probe": self.root / f"probe-{name}"}

    # --- training -----------------------------------------------------------------------------------------------

    def trained(self, row: Row) -> Path:
        """Its checkpoint, which is made where it is not there."""
        self.prepare()
        if row.of == FLOAT:
            if not self.pretrained.is_file():
                self.pretrain()
            return self.pretrained
        folder = self.root / row.of
        checkpoint = folder / f"epoch-{self.args.epochs}.pt"
        if not checkpoint.is_file():
            own = ["--objective", "distillation", "--teacher", self.trained(ROWS[FLOAT]), *row.flags]
            own += ["--train-splits", "few", "--num-epochs", self.args.epochs, *self.args.more_later.split()]
            run_script("train_hubert.py", *self.training(folder), *own)
        return checkpoint

    def training(self, folder: Path) -> list[object]:
        speech = ["--corpus", SPEECH, "--manifest-dir", self.manifests, "--valid-splits", "valid"]
        return [*speech, "--exp-dir", folder, "--resume", "true", "--scan-for-oom", "false", *self.threads]

    def pretrain(self) -> None:
        """By masked prediction of clusters of MFCC, in float."""
        labels = self.root / "labels"
        where = ["--corpus", SPEECH, "--manifest-dir", self.manifests, "--output-dir", labels, *self.threads]
        run_script("-m", "lowbit_k2.recipe.label_frames", *where, "--splits", "train valid", "--num-clusters", 100)
        own = ["--labels-dir", labels, "--train-splits", "train", "--model", "tiny"]
        own += ["--num-epochs", self.args.float_epochs, *self.args.more.split()]
        run_script("train_hubert.py", *self.training(self.root / FLOAT), *own)

    def prepare(self) -> None:
        """Manifests: AN4 and LibriSpeech in one, a part of that, and the keywords."""
        from lhotse import CutSet

        if cuts_path(self.manifests, SPEECH, "valid").is_file():
            return
        sets = {}
        for split, part in (("train", "train-clean-100"), ("dev", "dev-clean")):
            found = speech_cuts(self.an4, AN4, [split], SAMPLING_RATE)
            found += speech_cuts(self.args.librispeech_manifests, "librispeech", [part], SAMPLING_RATE)
            sets[split] = sorted(found, key=lambda cut: cut.id)
        write_keywords(self.args.keywords_dir, self.manifests)
        chosen = {"train": sets["train"], "few": sets["train"][::EVERY], "valid": sets["dev"][::EVERY]}
        for split, cuts in chosen.items():  # valid, which says that all is there, at last
            with atomic_write(cuts_path(self.manifests, SPEECH, split)) as temporary:
                CutSet.from_cuts(cuts).to_file(temporary)

    # --- what comes of it ---------------------------------------------------------------------------------------

    def measure(self, name: str, checkpoint: Path) -> dict[str, Any]:
        """Distance to the float model, what the probes make of hidden states, sizes and times."""
        row, states = ROWS[name], self.root / f"states-{name}"
        choice = CheckpointChoice(checkpoint.parent, checkpoint=checkpoint)
        student = Representation.load(choice, row.precision)
        found = self.to_teacher(student)
        packed = ExportConfig(choice, row.precision, output=self.root / f"{name}.safetensors")
        sizes = run_export(packed, load_train_cuts=lambda: None)
        found |= {"bytes": sizes.file.total, "float_bytes": sizes.float_file.total, **counts_of(row, student.config)}
        if name != FLOAT and library() is not None:  # without a compiler the cell stays empty
            found["matrices"] = time_matrices(packed.output, FRAMES, MODES[row.bits.split("a")[1] != "32"])._asdict()
        found["updates"] = load_checkpoint(checkpoint).meta["progress"]["update"]
        where = ["--checkpoint", checkpoint, "--precision", row.precision, "--output-dir", states, *self.threads]
        for manifests, corpus, splits in ((self.an4, AN4, "train dev test"), (self.manifests, KEYWORDS, "all")):
            named = ["--manifest-dir", manifests, "--corpus", corpus, "--splits", splits]
            run_script("-m", "lowbit_k2.recipe.extract_states", *where, *named)
        layers = student.config.num_layers + 1
        for key, (corpus, label, splits) in zip(PROBES, (WORDS, SPEAKERS), strict=True):
            cuts = load_cuts(states, corpus, splits)
            config = ProbeConfig(num_states=layers, label=label)
            halves = held_out(cuts, label, config.hold_out)
            found[key] = asdict(probe(*halves, read_feature_config(states, "none"), config))
        found["asr"] = self.recognise(name, states, layers)
        shutil.rmtree(states)
        return found

    def to_teacher(self, student: Representation) -> dict[str, float]:
        """With the float model, on what is validated on."""
        teacher = Representation.load(CheckpointChoice(checkpoint=self.pretrained))
        speech = SpeechConfig(SPEECH, ("valid",), self.manifests, max_duration=10.0)
        found = compare(student, teacher, speech.module(student.config.norm_first), speech.cuts("valid"))
        return {"distance": found.distance, "measured": found.seconds / found.teacher_seconds, **seconds_of(found)}

    def recognise(self, name: str, features: Path, num_states: int) -> dict[str, Any]:
        """Train AN4's recogniser on frozen features, and decode the test set."""
        folder, epochs = self.root / f"probe-{name}", self.args.probe_epochs
        lang_dir = self.args.an4_data / "lang_char"
        if epochs not in (numbered(folder, "epoch") if folder.is_dir() else []):
            own = ["--manifest-dir", features, "--lang-dir", lang_dir, "--exp-dir", folder, "--resume", "true"]
            own += ["--model", "superb-tiny", "--num-states", num_states, "--precisions", 32, "--num-epochs", epochs]
            own += ["--enable-spec-aug", "false", "--scan-for-oom", "false", "--lr-schedule", "linear", *self.threads]
            own += [] if name == FBANK else ["--feature-normalize", "none"]
            run_script(RECIPE.parent / "an4/train.py", *own, *self.args.more_probe.split())
        config = DecodeConfig(
            CheckpointChoice(folder),
            decoding_method=",".join(SEARCHES),
            lang_dir=lang_dir,
            lm_scale=(self.args.lm_scale,),
            manifest_dir=features,
            quiet=True,
        )
        decoded = run_decode(config, lambda: {"test": load_cuts(features, AN4, "test")})
        return {method: word_errors(found.results) for (_, method, _, _), found in decoded.items()}

    def filter_banks(self) -> Path:
        """Of AN4, at the one speed that hidden states are taken at."""
        folder = self.root / "fbank"
        where = ["--corpus", AN4, "--manifest-dir", self.an4, "--output-dir", folder]
        run_script("-m", "lowbit_k2.recipe.compute_fbank", *where, "--splits", "train dev test")
        return folder

    def summary(self) -> dict[str, Any]:
        """The rows that are done, and how those that are to be compared differ.

        Raises:
          UserError: there are none.
        """
        rows = {name: read_json(self.result(name)) for name in ROWS if self.result(name).is_file()}
        if not rows:
            raise UserError(f"{self.root} has no row yet: run make")
        return {"rows": {name: without_counts(own) for name, own in rows.items()}, "claims": compared(rows)}


def seconds_of(found: Any) -> dict[str, float]:
    """CPU seconds for one of speech, of the row and of the float model in the same call."""
    return {"rtf": found.seconds / found.audio, "float_rtf": found.teacher_seconds / found.audio}


def word_errors(results: list[Result]) -> dict[str, Any]:
    """The rate, and errors and words of each utterance."""
    counts = []
    for result in results:
        stats = score([result])
        counts.append([stats.errors, stats.ref_words])
    return {"wer": sum(errors for errors, _ in counts) / sum(words for _, words in counts), "counts": counts}


def commits_of(folder: Path) -> list[str]:
    """Those of the source tree that a training ran at, in the order of its logs; "-dirty" where files had changed."""
    lines = [line for log in sorted(folder.glob("log/*")) for line in log.read_text().splitlines()]
    return list(dict.fromkeys(line.removeprefix("commit: ") for line in lines if line.startswith("commit: ")))


def write_keywords(folder: Path, manifest_dir: Path) -> None:
    """Manifests of WORD/CLIP in a folder, the text of a clip being the name of its folder.

    Raises:
      UserError: there are no clips, or one cannot be read.
    """
    from lhotse import RecordingSet, SupervisionSegment, SupervisionSet

    clips = sorted(path for path in folder.glob("*/*") if path.suffix in (".ogg", ".wav", ".flac"))
    if not clips:
        raise UserError(f"--keywords-dir {folder} holds no WORD/CLIP.ogg, .wav or .flac")
    recordings = [recording_of(path, f"{path.parent.name}-{path.stem}") for path in clips]
    supervisions = [
        SupervisionSegment(r.id, r.id, 0.0, r.duration, text=path.parent.name)
        for r, path in zip(recordings, clips, strict=True)
    ]
    sets = RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions)
    write_manifests(KEYWORDS, {"all": dict(zip(("recordings", "supervisions"), sets, strict=True))}, manifest_dir)


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("make", "table", "results"))
    parser.add_argument("--an4-data", type=Path, default=RECIPE.parent / "an4/data", help="of egs/an4/prepare.sh")
    parser.add_argument("--librispeech-manifests", type=Path, help="of train-clean-100 and dev-clean, or pieces")
    parser.add_argument("--keywords-dir", type=Path, help="WORD/CLIP.ogg")
    parser.add_argument("--exp-root", type=Path, default=Path("exp/rows-hubert"), help="a folder per training below it")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, by commas")
    parser.add_argument("--float-epochs", type=int, default=3, help="of pre-training")
    parser.add_argument("--epochs", type=int, default=1, help="of distillation, on every third utterance")
    parser.add_argument("--probe-epochs", type=int, default=10, help="of AN4's recogniser")
    parser.add_argument("--lm-scale", type=float, default=0.6, help="of AN4's graph")
    parser.add_argument("--num-threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--more",
        default="--max-duration 8 --unmasked-weight 1 --warm-step 100 --lr-factor 0.15",
        help="more flags of pre-training, in quotes",
    )
    parser.add_argument(
        "--more-later", default="--max-duration 10 --warm-step 20 --lr-factor 0.04", help="and of distillation"
    )
    parser.add_argument(
        "--more-probe", default="--max-duration 30 --warm-step 50 --lr-factor 0.25", help="and of the recogniser"
    )
    parser.add_argument("--output", type=Path, help="for `table`: the rows as JSON, as results/hubert.json has them")
    parser.add_argument("--check", type=str2bool, default=False, help="for `results`: write nothing, say if it would")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    if args.command == "results":
        write_results(PAGE, args.check)
        return
    table = Table(args)
    if args.command == "make":
        names = chosen_rows(args.only, ROWS)
        for flag in ("librispeech_manifests", "keywords_dir"):
            if getattr(args, flag) is None and not cuts_path(table.manifests, SPEECH, "valid").is_file():
                raise UserError(f"--{flag.replace('_', '-')} is needed by the first make: see --help")
        torch.set_num_threads(args.num_threads)
        for name in progress_bar(names, "rows", unit="row"):
            table.make(name)
    found = table.summary()
    if args.output:
        write_json(args.output, found)
    print(format_rows(found["rows"]), format_claims(found["claims"]), sep="\n\n")


if __name__ == "__main__":
    run_main(main)
