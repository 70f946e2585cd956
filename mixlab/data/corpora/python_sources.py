"""Python sources that are on every machine: the standard library, and the installed packages."""

import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.documents import Document, SourceReport
from mixlab.data.files import SourceFile, fingerprint, read_text, stat_files, walk

# Test suites are left out because distributions differ in shipping them, and because test code
# repeats itself far more than other code does.
_TEST_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
_STDLIB_FOLDERS = _TEST_FOLDERS | {"site-packages", "dist-packages", "pydoc_data", "encodings"}
# Written by programs: build settings, Unicode and HTML tables, opcodes, tokens.
_STDLIB_GENERATED = re.compile(
    r"^(_sysconfigdata[^/]*|_sysconfig_vars[^/]*|stringprep|html/entities|_opcode_metadata"
    r"|keyword|token)\.py$"
)
_STDLIB_BUILD_FOLDER = re.compile(r"^config-[^/]*$")  # makefiles and build scripts


class _PythonFiles(CorpusConfig):
    """Sources that belong to the running interpreter."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        report.facts |= {"python": _python_version(), "document": "file"}
        for file in self._files(report):
            text = read_text(file, report)
            if text is not None:
                yield Document(file.name, text)

    def fingerprint(self) -> dict[str, Any]:
        return {"python": _python_version(), **fingerprint(self._files(SourceReport()))}

    def _files(self, report: SourceReport) -> list[SourceFile]:
        raise NotImplementedError


class PythonStdlib(_PythonFiles):
    """Sources of the running interpreter's standard library, without tests and tables."""

    kind: Literal["python-stdlib"] = "python-stdlib"

    def _files(self, report: SourceReport) -> list[SourceFile]:
        root = Path(sysconfig.get_path("stdlib"))

        def keep(name: str) -> bool:
            return name.endswith(".py") and not _STDLIB_GENERATED.search(name)

        def enter(name: str) -> bool:
            return not (
                name.rpartition("/")[2] in _STDLIB_FOLDERS or _STDLIB_BUILD_FOLDER.match(name)
            )

        return stat_files(walk(root, keep, enter), report)


class PythonPackages(_PythonFiles):
    """Sources of all packages installed beside the running interpreter, without their tests.

    The licences of these packages differ: train on them locally, do not pass the text on.
    """

    kind: Literal["python-packages"] = "python-packages"

    def _files(self, report: SourceReport) -> list[SourceFile]:
        # Usually one folder under two names; some systems do keep compiled packages apart.
        roots = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}

        def found() -> Iterator[tuple[str, str]]:
            for root in sorted(roots):
                yield from walk(
                    root,
                    keep=lambda name: name.endswith(".py"),
                    enter=lambda name: name.rpartition("/")[2] not in _TEST_FOLDERS,
                )

        return stat_files(found(), report)


def _python_version() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"
