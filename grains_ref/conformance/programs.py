"""A port that is a program: it reads one JSON object per line and answers with one (docs/porting.md has the protocol).

Nothing that a program does holds the kit up: not reading, not answering, endless lines, going on in the background.
"""

from __future__ import annotations

import io
import json
import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from grains_ref.conformance.ports import (
    LONGEST_ANSWER,
    PortError,
    Refused,
    Skipped,
    decode_values,
    encode_values,
    known_names,
    words_of,
)
from grains_ref.conformance.stages import DTYPES, OUTPUTS
from grains_ref.files import parse_json

PROTOCOL = 1
NOT_ASKED = "not asked: "  # begins the message of a case that a program was spared
MOST_HANGS = 3  # in a row; then the program is not asked again, or hundreds of cases would each wait for the timeout
LAST_WORDS = 2.0  # seconds to wait for a program to end, once it has closed its output or was asked to stop


class CommandPort:
    """A program that speaks JSON lines.

    A program that hangs is killed after `timeout` seconds, with all that it started, one that crashes or answers
    garbage is reported with what it wrote to standard error; it is started again for the next case.  After
    `MOST_HANGS` hangs in a row it is left alone: every further case fails at once.

    Raises:
        PortError: it cannot be started, or does not answer the start message as it should.
    """

    def __init__(self, command: str, *, timeout: float = 20.0) -> None:
        try:
            self.command = shlex.split(command)
        except ValueError as error:
            raise PortError(f"the command {command!r} cannot be read: {error}") from error
        self.timeout, self._seq, self._hangs = timeout, 0, 0
        self._folder = tempfile.TemporaryDirectory(prefix="grains-conform-")
        try:
            self._program = Program(self.command)
            hello = self._ask({"cmd": "start", "version": PROTOCOL})
            self.name, self.stages, self.dtypes, self.arrays = read_hello(hello, name=command)
        except BaseException:
            self.close()
            raise

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        if self._hangs >= MOST_HANGS:
            raise PortError(f"{NOT_ASKED}the port hung {self._hangs} times in a row")
        if self._program.has_ended():
            self._program = Program(self.command)
            self._ask({"cmd": "start", "version": PROTOCOL})
        self._seq += 1
        place = Path(self._folder.name) / f"{self._seq}.safetensors"
        message = {"cmd": "run", "seq": self._seq, "stage": stage, "case": case, "dtype": dtype}
        answer = self._ask(message | {"in": encode_values(inputs, None if self.arrays == "inline" else place)})
        self._hangs = 0
        try:
            return read_answer(answer, stage, seq=self._seq)
        except OutOfStep:
            self._program.kill()
            raise

    def close(self) -> None:
        """See `Port`."""
        program = getattr(self, "_program", None)
        if program:
            program.stop()
        self._folder.cleanup()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        program = self._program
        try:
            line = program.ask(json.dumps(message).encode() + b"\n", timeout=self.timeout)
        except Hung as problem:
            self._hangs += 1
            raise PortError(f"{problem}; the port was killed{program.said()}") from None
        except PortError as problem:
            raise PortError(f"{problem}{program.said()}") from None
        try:
            answer = parse_json(line)
        except ValueError as error:
            program.kill()
            beginning = words_of(line[:200].decode(errors="replace").rstrip())
            advice = "Only answers may go to standard output; print to standard error."
            why = words_of(error)[:200]
            raise PortError(f"the answer is no JSON: {beginning!r} ({why}). {advice}{program.said()}") from None
        if not isinstance(answer, dict):
            program.kill()
            raise PortError(f"the answer is {type(answer).__name__}; expected an object")
        return answer


class OutOfStep(PortError):
    """The answer belongs to another message."""


def read_hello(hello: Mapping[str, Any], *, name: str) -> tuple[str, tuple[str, ...], tuple[str, ...], str]:
    """Name, stages, dtypes and way of arrays from the answer to the start message.

    Raises:
        PortError: another version of the protocol, or a claim that cannot be.
    """
    version, arrays = hello.get("version"), hello.get("arrays", "inline")
    if type(version) is not int or version != PROTOCOL:
        raise PortError(
            f"the port speaks version {words_of(repr(version))} of the protocol; this kit speaks {PROTOCOL}"
        )
    if arrays not in ("inline", "safetensors"):
        raise PortError(f"arrays is {words_of(repr(arrays))}; expected 'inline' or 'safetensors'")
    return (
        words_of(hello.get("name", name)),
        known_names("stages", hello.get("stages", []), OUTPUTS),
        known_names("dtypes", hello.get("dtypes", ["float32"]), DTYPES),
        arrays,
    )


def read_answer(answer: Mapping[str, Any], stage: str, *, seq: int) -> Mapping[str, Any]:
    """The outputs in an answer to a run message.

    Raises:
        Refused, Skipped: the port says so.
        OutOfStep: the answer is to another message.
        PortError: the port reports an error, or the answer is none.
    """
    number = answer.get("seq")
    if type(number) is not int or number != seq:
        raise OutOfStep(f"the answer has seq {words_of(number)!s:.40}; expected {seq}: one answer per message")
    kinds = [kind for kind in ("out", "refused", "skipped", "error") if kind in answer]
    if len(kinds) != 1:
        raise PortError(f"the answer has {kinds or 'none'} of out, refused, skipped, error; expected exactly one")
    if kinds == ["refused"]:
        raise Refused(words_of(answer["refused"]))
    if kinds == ["skipped"]:
        raise Skipped(words_of(answer["skipped"]))
    if kinds == ["error"]:
        raise PortError(words_of(answer["error"]))
    if not isinstance(answer["out"], dict):
        raise PortError(f"out is {type(answer['out']).__name__}; expected an object with {', '.join(OUTPUTS[stage])}")
    return decode_values(answer["out"])


# ------------------------------------------------------------------------------------- processes
class Hung(PortError):
    """The program did nothing within the time that it had."""


class Program:
    """A running program.  Its output is read by threads, so that none of its pipes can hold this process up.

    Raises:
        PortError: it cannot be started.
    """

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
            )
        except (OSError, ValueError, IndexError) as error:  # the last two: a null byte, an empty command
            raise PortError(
                f"{shlex.join(command)} cannot be started: {error}. Give the program's path, and for a script its "
                "interpreter in front: --cmd 'python3 port.py'"
            ) from error
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=2)  # who writes more waits until it is asked for
        self._errors: deque[str] = deque(maxlen=20)
        self._is_over = threading.Event()
        self._reader = self._thread(self._process.stdout, self._keep_line, LONGEST_ANSWER + 1)
        self._listener = self._thread(self._process.stderr, self._keep_error, 2000)

    def ask(self, message: bytes, *, timeout: float) -> bytes:
        """The line with which a message is answered; both ways together may take `timeout` seconds.

        Raises:
            Hung: it did not read, or did not answer. It has been killed.
            PortError: it ended, or its answer is too long.
        """
        deadline = time.monotonic() + timeout
        writer = threading.Thread(target=self._write, args=(message,), daemon=True)
        writer.start()
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            what = "does not read its input: a message was not taken" if writer.is_alive() else "gave no answer"
            self.kill()
            raise Hung(f"the port {what} within {timeout:g} seconds") from None
        if not line:
            raise PortError(self._end())
        if len(line) > LONGEST_ANSWER:
            self.kill()
            raise PortError(f"the answer is longer than {LONGEST_ANSWER >> 20} MiB")
        writer.join(max(0.0, deadline - time.monotonic()))
        if writer.is_alive():
            self.kill()
            raise Hung(f"the port answered, but did not read the whole message within {timeout:g} seconds")
        return line

    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.poll() is not None

    def said(self) -> str:
        """The end of what it wrote to standard error, to be put after a message."""
        if self.has_ended():
            self._listener.join(LAST_WORDS)  # its last words may still be on their way
        last = list(self._errors)[-5:]
        return f". It wrote to standard error:\n    {chr(10).join(last)}" if last else ""

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        if not self.has_ended():
            threading.Thread(target=self._write, args=(b'{"cmd": "stop"}\n',), daemon=True).start()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=LAST_WORDS)
        self.kill()

    def kill(self) -> None:
        """End it, and what it has started in its process group."""
        self._is_over.set()
        if not self.has_ended():
            with suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
                else:
                    self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in the system cannot be waited for
            self._process.wait(timeout=LAST_WORDS)
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()

    def _end(self) -> str:
        """It has closed its output: how it ended, or that it did not."""
        try:
            code = self._process.wait(timeout=LAST_WORDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the port closed its output instead of answering; it was killed"
        return f"the port ended with code {code} instead of answering"

    def _write(self, message: bytes) -> None:
        stream, rest = self._process.stdin, memoryview(message)
        with suppress(OSError, ValueError):  # it has ended: the end of its output tells
            while stream and rest:
                rest = rest[stream.write(rest) or 0 :]

    def _thread(self, stream: Any, keep: Callable[[bytes], None], longest: int) -> threading.Thread:
        thread = threading.Thread(target=_read, args=(io.BufferedReader(stream), keep, longest), daemon=True)
        thread.start()
        return thread

    def _keep_line(self, line: bytes) -> None:
        while not self._is_over.is_set():
            with suppress(queue.Full):
                self._lines.put(line, timeout=0.1)
                return

    def _keep_error(self, line: bytes) -> None:
        if line:
            self._errors.append(words_of(line.decode(errors="replace").rstrip()))


def _read(stream: io.BufferedReader, keep: Callable[[bytes], None], longest: int) -> None:
    """Lines of a stream until it ends; then one empty line."""
    with suppress(OSError, ValueError), stream:
        while line := stream.readline(longest):
            keep(line)
    keep(b"")
