"""What the command line makes of warnings."""

from mixlab.cli import main as command_line
from mixlab.infer.decoding import layers


def test_a_warning_of_the_lab_is_a_line_for_its_user(capsys):
    command_line._show_warning(UserWarning("it is slow"), UserWarning, layers.__file__, 3)
    assert capsys.readouterr().err == "mixlab: it is slow.\n"


def test_a_warning_of_a_library_keeps_its_place(capsys):
    command_line._show_warning(UserWarning("old"), UserWarning, "/lib/other.py", 3)
    assert capsys.readouterr().err.startswith("/lib/other.py:3: UserWarning: old")
