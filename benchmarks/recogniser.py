#!/usr/bin/env python3
"""How fast, small and prompt are packed recognisers beside PyTorch? From an audio file to words, process by process.

python benchmarks/recogniser.py                              # 12 x 256/2048 on 10 s and 30 s
python benchmarks/recogniser.py --models 12x256 17x512 --seconds 10 30 600 --repeats 3
python benchmarks/recogniser.py --packed 1bit.safetensors --audio speech.wav
python benchmarks/recogniser.py --engines "native a16" "torch float32" "onnxruntime int8" "sherpa-onnx int8"
python benchmarks/recogniser.py --audio speech.wav --moonshine FOLDER    # of the command below

Models without --packed are untrained: their words mean nothing, their speed does. Every engine has a process of its
own, which runs by turns with the others, so that a machine that is busy for a while is so for all of them; times are
medians. `first` is the time to the first words: of the first segment of what is longer than a chunk. `peak` is that of
the whole process so far, Python and model included. `network` is the time of the network alone, features to log
posteriors, of audio that goes through it whole. PyTorch has the same weights in float32; its file is that of them.

onnxruntime and sherpa-onnx run the model as export.py writes it (docs/onnx.md): the former with the features, chunks
and search of the native runtime, the latter with its own, and without chunks. Moonshine is another model, which cuts
audio by a voice detector of its own: it needs speech, and tells its first words with all others. Its weights and what
it needs come by

pip install --target FOLDER moonshine-voice==0.0.62

What is not installed is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import cpu_name, use_project_interpreter

use_project_interpreter()

import numpy as np

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.models import CtcConfig, TransducerConfig
from lowbit_k2.data.audio import AudioFile
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.packed import PackedTensor, read_packed, write_packed
from lowbit_k2.processes import peak_memory, wait_for_rest
from lowbit_k2.tables import text_table

TORCH = "torch float32"
NATIVE = ("native exact", "native a16", "native a8")
ONNX = ("onnxruntime float", "onnxruntime int8", "sherpa-onnx float", "sherpa-onnx int8")
MOONSHINE = "moonshine tiny int8"
ENGINES = (*NATIVE, TORCH, *ONNX, MOONSHINE)
PACKAGES = {"onnxruntime": "onnxruntime", "sherpa-onnx": "sherpa_onnx"}
WHOLE = 60.0  # seconds of audio up to which the network alone is timed, and sherpa-onnx run
TIMES = ("first", "all", "network")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = "wall"  # set by --clock
Run = Callable[[Path, bool], tuple[float, ...]]  # audio, whether the network is timed, too -> seconds, as TIMES
MODELS = {"12x256": ConformerConfig.presets["paper"], "17x512": ConformerConfig.presets["large"]}
RATE = 16000

if TYPE_CHECKING:
    from lowbit_k2.runtime import Recogniser


def now() -> float:
    return CLOCKS[clock]()


def first_and_all(results: Iterator[object], start: float) -> tuple[float, float]:
    """Seconds since `start` until the first result and until the last."""
    next(results, None)
    first = now() - start
    for _ in results:
        pass
    return first, now() - start


def seconds_of(function: Callable[[], object]) -> float:
    start = now()
    function()
    return now() - start


def time_recogniser(recogniser: Recogniser) -> Run:
    from lowbit_k2.runtime.features import FeatureStream, normalize, num_frames

    def run(audio: Path, alone: bool) -> tuple[float, ...]:
        start = now()
        times = first_and_all(recogniser.labels(audio), start)
        if not alone:
            return times
        file, config = AudioFile(audio, RATE), recogniser.features
        frames = num_frames(config, file.num_samples)
        features = normalize(FeatureStream(config, file.blocks()).take(0, frames), config)
        return (*times, seconds_of(lambda: recogniser.network(features)))

    return run


def native_engine(packed: Path, mode: str, threads: int) -> Run:
    from lowbit_k2.runtime import Recogniser

    return time_recogniser(Recogniser.load(packed, mode, threads))


def onnxruntime_engine(packed: Path, model: Path, threads: int) -> Run:
    """The native recogniser with onnxruntime's network in it."""
    import onnxruntime

    from lowbit_k2.core.models import model_config_from_dict
    from lowbit_k2.runtime import PackedCtc, Recogniser

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    class Network(PackedCtc):
        def __init__(self) -> None:
            file = read_packed(packed)
            self.packed, self.config = replace(file, tensors=()), model_config_from_dict(file.model_config)

        def __call__(self, features: np.ndarray) -> np.ndarray:
            log_probs, lens = session.run(None, {"x": features[None], "x_lens": np.array([len(features)])})
            return log_probs[0, : lens[0]]

    return time_recogniser(Recogniser(Network()))


def sherpa_engine(model: Path, threads: int) -> Run:
    import sherpa_onnx

    recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(model), tokens=str(model.parent / "tokens.txt"), num_threads=threads, feature_dim=80
    )

    def run(audio: Path, alone: bool) -> tuple[float, ...]:
        if not alone:
            return ()
        start = now()
        stream = recognizer.create_stream()
        stream.accept_waveform(RATE, samples_of(audio))
        recognizer.decode_stream(stream)
        _ = stream.result.text
        taken = now() - start
        return taken, taken

    return run


def moonshine_engine(folder: Path, threads: int) -> Run:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])  # it has no flag for threads
    sys.path.append(str(folder))
    from moonshine_voice.moonshine_api import ModelArch
    from moonshine_voice.transcriber import Transcriber

    transcriber = Transcriber(folder / "moonshine_voice/assets/tiny-en", ModelArch.TINY)

    def run(audio: Path, alone: bool) -> tuple[float, ...]:
        taken = seconds_of(lambda: transcriber.transcribe_without_streaming(samples_of(audio).tolist(), RATE))
        return taken, taken

    return run


def samples_of(audio: Path) -> np.ndarray:
    return np.concatenate(list(AudioFile(audio, RATE).blocks()))


def torch_engine(packed: Path, threads: int) -> Run:
    import torch

    from lowbit_k2.asr.long_audio import segments
    from lowbit_k2.asr.model_io import load_packed
    from lowbit_k2.asr.recognizer import packed_recognizer
    from lowbit_k2.data.features import extract_wav, make_extractor

    torch.set_num_threads(threads)
    recognizer = packed_recognizer(load_packed(packed))
    config, [method] = recognizer.features, recognizer.searches.values()
    extractor = make_extractor(config)

    def run(audio: Path, alone: bool) -> tuple[float, ...]:
        start = now()
        features = extract_wav(audio, config, extractor)
        if recognizer.is_long(len(features)):
            outputs = segments(recognizer, features)
        else:
            outputs = iter([recognizer.run(features[None], torch.tensor([len(features)]))])
        times = first_and_all((method.nbest(output) for output in outputs), start)
        if not alone:
            return times
        return (*times, seconds_of(lambda: recognizer.run(features[None], torch.tensor([len(features)]))))

    return run


def serve(args: argparse.Namespace) -> None:
    """What the process of an engine does: for each line with an audio file, a line with its times and memory."""
    global clock
    clock = args.clock
    name, kind, threads = args.serve.split()[0], args.serve.split()[1], args.threads
    if args.serve == TORCH:
        run = torch_engine(args.packed, threads)
    elif args.serve == MOONSHINE:
        run = moonshine_engine(args.moonshine, threads)
    elif name == "native":
        run = native_engine(args.packed, kind, threads)
    elif name == "onnxruntime":
        run = onnxruntime_engine(args.packed, args.onnx / onnx_file(kind), threads)
    else:
        run = sherpa_engine(args.onnx / onnx_file(kind), threads)
    for line in sys.stdin:
        audio = Path(line.strip())
        times = run(audio, AudioFile(audio, RATE).num_samples <= WHOLE * RATE)
        wait_for_rest()
        print(json.dumps({**dict(zip(TIMES, times, strict=False)), "peak": peak_memory() / 1e6}), flush=True)


def onnx_file(kind: str) -> str:
    return "model.onnx" if kind == "float" else f"model.{kind}.onnx"


def installed(args: argparse.Namespace) -> list[str]:
    """The engines that can be run; a line for each that cannot."""
    found = []
    for engine in args.engines:
        package = PACKAGES.get(engine.split()[0])
        reason = ""
        if package and importlib.util.find_spec(package) is None:
            reason = f"{package} is not installed (requirements-onnx.txt)"
        elif engine in ONNX and args.kind != "ctc":
            reason = "transducers have files of three networks"
        elif engine == MOONSHINE and not args.moonshine:
            reason = "--moonshine names no folder"
        if reason:
            print(f"{engine} is left out: {reason}", flush=True)
        else:
            found.append(engine)
    return found


def export(packed: Path, engines: list[str], folder: Path) -> None:
    """The ONNX files that engines need."""
    from lowbit_k2.asr.model_io import load_packed
    from lowbit_k2.export.onnx import export_onnx

    for kind in sorted({engine.split()[1] for engine in engines if engine in ONNX}):
        export_onnx(load_packed(packed), folder, kind)


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


def file_bytes(engine: str, packed: Path, folder: Path, args: argparse.Namespace) -> int:
    if engine == TORCH:
        return float_bytes(packed, folder)
    if engine == MOONSHINE:
        return sum(path.stat().st_size for path in args.moonshine.glob("moonshine_voice/assets/tiny-en/*.ort"))
    path = folder / "onnx" / onnx_file(engine.split()[1]) if engine in ONNX else packed
    return path.stat().st_size


def make_audio(seconds: float, folder: Path) -> Path:
    """Noise that comes and goes."""
    import soundfile

    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.1 * np.random.default_rng(0).standard_normal(len(t)) * np.sin(2 * t) ** 4
    path = folder / f"{seconds:g}.wav"
    soundfile.write(path, wave, RATE)
    return path


def measure(packed: Path, files: list[Path], args: argparse.Namespace, onnx: Path) -> dict[str, list[dict[str, float]]]:
    """Of each engine and file: `TIMES`, as far as they were taken, and the peak after the first turn."""
    passed = ["--packed", packed, "--threads", str(args.threads), "--onnx", onnx, "--clock", args.clock]
    if args.moonshine:
        passed += ["--moonshine", args.moonshine]
    processes = {
        engine: subprocess.Popen(
            [sys.executable, __file__, *passed, "--serve", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for engine in args.engines
    }
    typical = min if args.fastest else statistics.median
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
            taken = [name for name in TIMES if name in values[0]]
            times = {name: typical(v[name] for v in values[1:]) for name in taken}
            found[engine].append({**times, "peak": values[0]["peak"]})
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def print_table(name: str, packed: Path, files: list[Path], args: argparse.Namespace, folder: Path) -> None:
    import soundfile

    files = sorted(files, key=lambda path: path.stat().st_size)
    lengths = [soundfile.info(path).duration for path in files]
    engines, onnx = args.engines, folder / "onnx"
    if set(engines) & set(ONNX):
        export(packed, engines, onnx)
    found, rows = measure(packed, files, args, onnx), []
    for engine in engines:
        cells = []
        for length, values in zip(lengths, found[engine], strict=True):
            taken = {name: f"{value / length if name == 'all' else value:.4f}" for name, value in values.items()}
            cells += [*(taken.get(name, "-") for name in ("all", "first", "network")), f"{values['peak']:.0f}"]
        rows.append([engine, f"{file_bytes(engine, packed, folder, args) / 1e6:.2f}", *cells])
    heads = [head for length in lengths for head in (f"{length:g} s: RTF", "first, s", "network, s", "peak, MB")]
    turn = "the fastest turn" if args.fastest else "medians"
    about = f"{name}, {args.threads} thread(s), {args.clock} time, {turn}, {cpu_name() or 'unknown CPU'}"
    print(f"\n{about}\n{text_table(['', 'file, MB', *heads], rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["12x256"], help="untrained encoders")
    parser.add_argument("--kind", choices=("ctc", "transducer"), default="ctc", help="what is behind them")
    parser.add_argument("--quant", default="paper", help="preset of their quantization, at its fewest bits")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0], help="of noise as audio")
    parser.add_argument("--packed", type=Path, help="a packed file instead of untrained models")
    parser.add_argument("--audio", type=Path, nargs="+", help="audio files instead of noise")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*NATIVE, TORCH])
    parser.add_argument("--moonshine", type=Path, help="folder where its package is, for that engine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of the process, where others want the CPU, too; 1 thread"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--fastest", action="store_true", help="the fastest turn of each, not the median")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--onnx", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    args.engines = installed(args)
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
