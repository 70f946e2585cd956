"""`mixlab chat` as a person has it: at a pseudo-terminal, with Ctrl-C, and from a pipe."""

import os
import re
import select
import subprocess
import sys
import time

import pytest

LIMIT_S = 90


class Terminal:
    """A command at a pseudo-terminal that is its controlling one, so that Ctrl-C is a signal."""

    def __init__(self, fork_server, words, cwd):
        self._fd, other = os.openpty()
        settings = {"TERM": "xterm", "NO_COLOR": "1"}
        self._command = fork_server.start(words, cwd=cwd, terminal=os.ttyname(other), **settings)
        self._other = other  # held open: without an other end there is nothing to read from
        self.seen = ""

    def until(self, text, since=0):
        """Wait until the screen shows a text, somewhere behind a place."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen[since:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[since:]!r}"
            self._read()

    def until_asked(self, since=0):
        """Wait for the prompt, and until keys count.

        One that comes while the line editor sets up the terminal is dropped by the terminal, and a
        Ctrl-C before it waits for keys is noticed with the next one.
        """
        self.until("> ", since)
        time.sleep(0.3)

    def until_more(self, n_characters, since):
        """Wait until so many characters follow a place."""
        deadline = time.monotonic() + LIMIT_S
        while len(self.seen) < since + n_characters:
            assert time.monotonic() < deadline, f"nothing follows {self.seen[since:]!r}"
            self._read()

    def _read(self):
        """Read what comes within a second; False once the other end is closed."""
        ready, _, _ = select.select([self._fd], [], [], 1)
        try:
            self.seen += os.read(self._fd, 4096).decode(errors="replace") if ready else ""
        except OSError:
            return False
        return True

    def type(self, text):
        """Send keys; the place on the screen where their effect begins."""
        place = len(self.seen)
        os.write(self._fd, text.encode())
        return place

    def end(self):
        """The exit status."""
        os.close(self._other)
        deadline = time.monotonic() + LIMIT_S
        while self._read():
            assert time.monotonic() < deadline, self.seen
        os.close(self._fd)
        return self._command.wait().code


@pytest.fixture(scope="module")
def place(fork_server, tiny_recipe, tmp_path_factory):
    """A finished run with a context that is long enough to be interrupted in."""
    folder = tmp_path_factory.mktemp("chat")
    words = ["train", tiny_recipe, "model.max_seq_len=60000", "train.length=3"]
    result = fork_server.run([*words, "--run-dir", "run"], cwd=folder)
    assert result.code == 0, result.stderr
    return folder


def test_a_session_at_a_terminal(place, fork_server):
    screen = Terminal(fork_server, ["chat", "run", "--max-new-tokens", "6"], place)
    screen.until("trained on plain text")
    screen.until("> ")
    here = screen.type("/help\n")
    screen.until("Ctrl-C stops an answer", here)
    here = screen.type("abc \\\n")
    screen.until(". ", here)
    here = screen.type("def\n")
    screen.until("> ", here + 4)
    here = screen.type("/tokens 50000\n")
    screen.until("at most 50000 tokens", here)
    here = screen.type("abc\n")
    screen.until_more(len("abc\r\n") + 24, here)  # the answer is under way; it would take minutes
    here = screen.type("\x03")
    screen.until("Stopped; the answer so far is kept.", here)
    screen.until("> ", here)
    here = screen.type("/tokens 5\n")
    screen.until("at most 5 tokens", here)
    here = screen.type("/temp warm\n")
    screen.until("expected a number", here)
    here = screen.type("/reset\n")
    screen.until("forgotten", here)
    screen.until_asked(screen.seen.index("forgotten", here))
    here = screen.type("\x03")
    screen.until("Ctrl-C again or Ctrl-D leaves.", here)
    screen.until_asked(screen.seen.index("leaves.", here))
    screen.type("\x03")
    assert screen.end() == 0
    assert "Traceback" not in screen.seen


@pytest.mark.slow  # processes of their own
def test_a_second_ctrl_c_leaves_and_so_does_the_end_of_input(place, fork_server):
    screen = Terminal(fork_server, ["chat", "run", "--max-new-tokens", "50000"], place)
    screen.until("> ")
    here = screen.type("abc\n")
    screen.until_more(len("abc\r\n") + 3, here)
    here = screen.type("\x03")
    screen.until("Stopped", here)
    screen.until_asked(here)
    screen.type("\x03")  # the second one, with no message between
    assert screen.end() == 0
    screen = Terminal(fork_server, ["chat", "run"], place)
    screen.until_asked()
    screen.type("\x04")
    assert screen.end() == 0
    assert "Traceback" not in screen.seen


@pytest.mark.slow  # a process of its own
def test_messages_from_a_pipe(place):
    lines = 'abc\n"""two\nlines"""\n/temp 0\n/nonsense\n\n/exit\nnot read\n'
    words = [sys.executable, "-m", "mixlab", "chat", "run", "--max-new-tokens", "4"]
    done = subprocess.run(
        words, input=lines, cwd=place, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 3 and "> " not in done.stdout
    assert "/nonsense: expected one of /help" in done.stderr
    assert "Temperature 0." in done.stderr and "Traceback" not in done.stderr


def test_several_prompts_at_once(place, fork_server):
    words = ["generate", "run", "--max-new-tokens", "5", "--temperature", "0"]
    one, two, three = (
        fork_server.run([*words, "--prompt", prompt], cwd=place).stdout for prompt in ("a", "", "c")
    )
    both = [*words, "--prompt", "a", "--prompt", "", "--prompt", "c"]
    result = fork_server.run(both, cwd=place)
    assert result.code == 0, result.stderr
    assert re.split(r"--- \d of 3\n", result.stdout)[1:] == [one, two, three]
    (place / "prompts.txt").write_text("a\n\nc\n")
    result = fork_server.run([*words, "--file", "prompts.txt", "--json"], cwd=place)
    assert [line[:15] for line in result.stdout.splitlines()] == [
        '{"prompt": "a",',
        '{"prompt": "c",',
    ]


def test_a_run_that_is_training_says_so(place, fork_server):
    words = ["generate", "run", "--prompt", "a", "--max-new-tokens", "2"]
    assert fork_server.run(words, cwd=place).stderr == ""
    from mixlab.core.run_dir import RunDir

    with RunDir.open(place / "run").lock():
        result = fork_server.run(words, cwd=place)
    assert result.code == 0 and "is still training; its checkpoint of step 3" in result.stderr
