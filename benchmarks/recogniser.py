#!/usr/bin/env python3
"""How fast, small and prompt are packed recognisers beside PyTorch? From an audio file to words, process by process.

python benchmarks/recogniser.py                              # 12 x 256/2048 on 10 s and 30 s
python benchmarks/recogniser.py --models 12x256 17x512 --seconds 10 30 600 --repeats 3
python benchmarks/recogniser.py --packed 1bit.safetensors --audio speech.wav

Models without --packed are untrained: their words mean nothing, their speed does. Every engine has a process of its
own, which runs by turns with the others, so that a machine that is busy for a while is so for all of them; times are
medians. `first` is the time to the first words: of the first segment of what is longer than a chunk. `peak` is that of
the whole process so far, Python and model included. PyTorch has the same weights in float32; its file is that of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import numpy as np

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.models import CtcConfig, TransducerConfig
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.packed import PackedTensor, read_packed, write_packed
from lowbit_k2.processes import peak_memory
from lowbit_k2.tables import text_table

TORCH = "torch float32"
ENGINES = ("native exact", "native a16", "native a8", TORCH)
MODELS = {"12x256": ConformerConfig.presets["paper"], "17x512": ConformerConfig.presets["large"]}
RATE = 16000


def first_and_all(results: Iterator[object], start: float) -> tuple[float, float]:
    """Seconds since `start` until the first result and until the last."""
    next(results, None)
    first = time.perf_counter() - start
    for _ in results:
        pass
    return first, time.perf_counter() - start


def native_engine(packed: Path, mode: str, threads: int) -> Callable[[Path], tuple[float, float]]:
    from lowbit_k2.runtime import Recogniser

    recogniser = Recogniser.load(packed, mode, threads)

    def run(audio: Path) -> tuple[float, float]:
        start = time.perf_counter()
        return first_and_all(recogniser.labels(audio), start)

    return run


def torch_engine(packed: Path, threads: int) -> Callable[[Path], tuple[float, float]]:
    import torch

    from lowbit_k2.asr.long_audio import segments
    from lowbit_k2.asr.model_io import load_packed
    from lowbit_k2.asr.recognizer import packed_recognizer
    from lowbit_k2.data.features import extract_wav, make_extractor

    torch.set_num_threads(threads)
    recognizer = packed_recognizer(load_packed(packed))
    config, [method] = recognizer.features, recognizer.searches.values()
    extractor = make_extractor(config)

    def run(audio: Path) -> tuple[float, float]:
        start = time.perf_counter()
        features = extract_wav(audio, config, extractor)
        if recognizer.is_long(len(features)):
            outputs = segments(recognizer, features)
        else:
            outputs = iter([recognizer.run(features[None], torch.tensor([len(features)]))])
        return first_and_all((method.nbest(output) for output in outputs), start)

    return run


def serve(engine: str, packed: Path, threads: int) -> None:
    """What the process of an engine does: for each line with an audio file, a line with its times and memory."""
    run = torch_engine(packed, threads) if engine == TORCH else native_engine(packed, engine.split()[1], threads)
    for line in sys.stdin:
        first, taken = run(Path(line.strip()))
        print(json.dumps({"first": first, "all": taken, "peak": peak_memory() / 1e6}), flush=True)


def untrained(encoder: ConformerConfig, kind: str, quant: str, folder: Path) -> Path:
    """A model with random weights at the lowest precision of a preset, as a packed file."""
    import torch

    from lowbit_k2.data.tokenizer import LexiconTokenizer
    from lowbit_k2.export import pack_model
    from lowbit_k2.models import make_model
    from lowbit_k2.quant import QuantConfig, quantize_model, use_precision

    torch.manual_seed(0)
    config = {"ctc": CtcConfig, "transducer": TransducerConfig}[kind](encoder, vocab_size=500)
    symbols = {"<blk>": 0, **{f"unit{i}": i for i in range(1, 500)}}
    tokenizer = LexiconTokenizer(symbols, [("word", ("unit1",))])
    model, scheme = make_model(config, for_training=False).eval(), QuantConfig.preset(quant)
    quantize_model(model, scheme)
    what = SimpleNamespace(model=model, model_config=config, tokenizer=tokenizer, features=FeatureConfig().to_dict())
    with use_precision(model, min(scheme.switched_precisions)):
        pack_model(what, folder / "packed.safetensors")
    return folder / "packed.safetensors"


def float_bytes(packed: Path, folder: Path) -> int:
    """Size of the file of the same weights in float32."""
    model, path = read_packed(packed), folder / "float.safetensors"
    tensors = [
        PackedTensor.from_values(t.name, t.role, "float32", t.dequantize(), aliases=t.aliases) for t in model.tensors
    ]
    write_packed(path, replace(model, tensors=tensors))
    size = path.stat().st_size
    path.unlink()
    return size


def make_audio(seconds: float, folder: Path) -> Path:
    """Noise that comes and goes."""
    import soundfile

    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.1 * np.random.default_rng(0).standard_normal(len(t)) * np.sin(2 * t) ** 4
    path = folder / f"{seconds:g}.wav"
    soundfile.write(path, wave, RATE)
    return path


def measure(packed: Path, files: list[Path], args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Of each engine and file: medians of `first` and `all`, and the peak after the first turn."""
    processes = {
        engine: subprocess.Popen(
            [sys.executable, __file__, "--packed", packed, "--threads", str(args.threads), "--serve", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for engine in args.engines
    }
    found: dict[str, list[dict[str, float]]] = {engine: [] for engine in processes}
    for file in sorted(files, key=lambda path: path.stat().st_size):  # the longest last: peaks only rise
        turns: dict[str, list[dict[str, float]]] = {engine: [] for engine in processes}
        for _ in range(args.repeats + 1):
            for engine, process in processes.items():
                process.stdin.write(f"{file}\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise UserError(f"{engine} ended: see above")
                turns[engine].append(json.loads(line))
        for engine, values in turns.items():
            times = {name: statistics.median(v[name] for v in values[1:]) for name in ("first", "all")}
            found[engine].append({**times, "peak": values[0]["peak"]})
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def print_table(name: str, packed: Path, files: list[Path], args: argparse.Namespace, folder: Path) -> None:
    import soundfile

    files = sorted(files, key=lambda path: path.stat().st_size)
    lengths = [soundfile.info(path).duration for path in files]
    sizes = dict.fromkeys(args.engines, packed.stat().st_size)
    if TORCH in sizes:
        sizes[TORCH] = float_bytes(packed, folder)
    found, rows = measure(packed, files, args), []
    for engine in args.engines:
        cells = [
            cell
            for length, values in zip(lengths, found[engine], strict=True)
            for cell in (f"{values['all'] / length:.4f}", f"{values['first']:.3f}", f"{values['peak']:.0f}")
        ]
        rows.append([engine, f"{sizes[engine] / 1e6:.2f}", *cells])
    heads = [head for length in lengths for head in (f"{length:g} s: RTF", "first, s", "peak, MB")]
    print(f"\n{name}, {args.threads} thread(s), {cpu_name()}\n{text_table(['', 'file, MB', *heads], rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["12x256"], help="untrained encoders")
    parser.add_argument("--kind", choices=("ctc", "transducer"), default="ctc", help="what is behind them")
    parser.add_argument("--quant", default="paper", help="preset of their quantization, at its fewest bits")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0], help="of noise as audio")
    parser.add_argument("--packed", type=Path, help="a packed file instead of untrained models")
    parser.add_argument("--audio", type=Path, nargs="+", help="audio files instead of noise")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.packed, args.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = args.audio or [make_audio(seconds, folder) for seconds in args.seconds]
        if args.packed:
            print_table(args.packed.name, args.packed, files, args, folder)
            return
        for model in args.models:
            packed = untrained(MODELS[model], args.kind, args.quant, folder)
            print_table(f"{model} {args.kind}, untrained", packed, files, args, folder)


if __name__ == "__main__":
    run_main(main)
