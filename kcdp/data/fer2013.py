"""``fer2013:PATH``: FER-2013 (Goodfellow et al. 2013), grey face photographs of 48x48 pixels.

PATH is a folder, a .zip of that folder (read in place), or the original csv. "neutral" is dropped; with
``neutral=only`` the six emotions are, and the neutral faces have no label. The folder and the zip hold
``[fer2013/]{train,val,test}/<class>/<file>``; train and test alone will do. The dataset's own splits are kept: in the
csv, Training is train, PublicTest is val and PrivateTest is test.
"""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.folder import classify, find_pictures, is_picture, require_pictures
from kcdp.decoding import decode
from kcdp.errors import KcdpError, nearest
from kcdp.labels import map_class

SIDE = 48
USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_COLUMNS = ("emotion", "pixels", "Usage")
_PREFIX = "fer2013/"
_LAYOUT = "{train,val,test}/<class>/<picture>, with or without fer2013/ above"


def open_fer2013(name: str, path: str | Path, neutral: bool = False) -> ImageDataset:
    """The reader for what PATH is. All of them have the attribute ``dropped``, the number of faces left out.

    Args:
        name: the dataset string.
        path: folder, .zip or .csv.
        neutral: only the neutral faces, without a label.

    Raises:
        KcdpError: PATH is missing or is none of the three forms.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return FerFolder(name, path, neutral)
    if not path.exists():
        raise KcdpError(f"{path} does not exist", "the FER-2013 folder, .zip or .csv", "check the path after fer2013:")
    readers = {".zip": FerZip, ".csv": FerCsv}
    if path.suffix.lower() not in readers:
        raise KcdpError(f"{path} is a {path.suffix or 'nameless kind of'} file", "a folder, a .zip or a .csv")
    return readers[path.suffix.lower()](name, path, neutral)


class FerFolder(ImageDataset):
    """Split folders on disk. Keys are ``split/class/file``."""

    def __init__(self, name: str, path: Path, neutral: bool = False) -> None:
        inner = path / _PREFIX.strip("/")
        self.root = inner if inner.is_dir() else path
        samples, self.dropped = _classify_splits(find_pictures(self.root), str(self.root), neutral)
        super().__init__(name, samples)

    def image(self, index: int) -> Image.Image:
        """Grey ("L"), 48x48; see ``ImageDataset.image``."""
        return decode(self.path_of(index))

    def path_of(self, index: int) -> Path:
        """See ``ImageDataset.path_of``."""
        return self.root / self.samples[index].key


class FerZip(ImageDataset):
    """The same folders inside a zip that is never extracted.

    Can be pickled, and used by several threads and by worker processes: each process opens the archive for itself,
    because a forked child shares its parent's position in the file.
    """

    def __init__(self, name: str, path: Path, neutral: bool = False) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self._lock = threading.Lock()
        members = [member for member in self._archive().namelist() if is_picture(member)]
        self._prefix = _PREFIX if members and all(member.startswith(_PREFIX) for member in members) else ""
        keys = sorted(member[len(self._prefix) :] for member in members)
        samples, self.dropped = _classify_splits(keys, str(path), neutral)
        super().__init__(name, samples)

    def image(self, index: int) -> Image.Image:
        """Grey ("L"), 48x48; see ``ImageDataset.image``."""
        member = self._prefix + self.samples[index].key
        name = f"{self.path}:{member}"
        try:
            with self._lock:
                data = self._archive().read(member)
        except KeyError:
            raise KcdpError(f"the picture {name} is missing", fix="open the dataset again") from None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise KcdpError(f"the picture {name} cannot be read ({error})", fix="fetch the archive again") from None
        return decode(data, name=name)

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = (os.getpid(), zipfile.ZipFile(self.path))
            except (zipfile.BadZipFile, OSError) as error:
                raise KcdpError(
                    f"{self.path} cannot be opened ({error})", "a whole zip archive", "fetch it again"
                ) from None
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=None, _lock=threading.Lock())


class FerCsv(ImageDataset):
    """The csv of the challenge: one picture a line, 2,304 grey values in reading order. Keys are ``line/NNNNNN``.

    Only each line's position is kept; the pixels are read when a picture is asked for.
    """

    def __init__(self, name: str, path: Path, neutral: bool = False) -> None:
        self.path = path
        self.dropped = 0
        samples: list[Sample] = []
        self._offsets: list[int] = []
        with path.open("rb") as handle:
            header = handle.readline()
            self._columns = self._read_header(header)
            offset = len(header)
            for number, line in enumerate(handle, start=2):
                if line.strip():
                    sample = self._read_line(line, number)
                    if (sample.label is None) != neutral:
                        self.dropped += 1
                    else:
                        samples.append(sample)
                        self._offsets.append(offset)
                offset += len(line)
        if not samples and not self.dropped:
            raise KcdpError(f"{path} holds no pictures", "one line a picture below the header")
        require_pictures(samples, self.dropped, str(path), neutral)
        super().__init__(name, samples)

    def image(self, index: int) -> Image.Image:
        """Grey ("L"), 48x48; see ``ImageDataset.image``."""
        name = f"{self.path}:{self.samples[index].key}"
        try:
            with self.path.open("rb") as handle:
                handle.seek(self._offsets[index])
                pixels = self._fields(handle.readline())[self._columns[1]]
            values = bytes(map(int, pixels.split()))
        except FileNotFoundError:
            raise KcdpError(f"the picture {name} is missing", fix="put the csv back") from None
        except (ValueError, IndexError, OSError):
            values = b""
        if len(values) != SIDE * SIDE:
            raise KcdpError(
                f"the picture {name} cannot be decoded", f"{SIDE * SIDE} numbers 0..255", "fetch the csv again"
            )
        return Image.frombytes("L", (SIDE, SIDE), values)

    def _read_header(self, header: bytes) -> tuple[int, int, int]:
        found = [field.decode("utf-8-sig", "replace").strip() for field in self._fields(header)]
        if sorted(found) != sorted(_COLUMNS):
            shown = ",".join(found)[:60]
            raise KcdpError(f"{self.path} has the header {shown!r}", f"{','.join(_COLUMNS)!r}", "use the original csv")
        emotion, pixels, usage = (found.index(column) for column in _COLUMNS)
        return emotion, pixels, usage

    def _read_line(self, line: bytes, number: int) -> Sample:
        where, fields = f"{self.path} line {number}", self._fields(line)
        if len(fields) != len(_COLUMNS):
            raise KcdpError(f"{where} has {len(fields)} fields", str(len(_COLUMNS)), "fetch the csv again")
        code, usage = (fields[self._columns[i]].decode("utf-8", "replace").strip() for i in (0, 2))
        if usage not in USAGES:
            raise KcdpError(f"{where}: Usage is {usage!r}{nearest(usage, USAGES)}", f"one of {', '.join(USAGES)}")
        if not code.isdecimal() or int(code) > 6:
            raise KcdpError(f"{where}: emotion is {code!r}", "a number from 0 to 6")
        return Sample(f"line/{number:06d}", map_class("fer2013", int(code)), USAGES[usage])

    @staticmethod
    def _fields(line: bytes) -> list[bytes]:
        # The values hold no commas, so csv quoting never matters beyond the quotes themselves.
        return [field.strip().strip(b'"') for field in line.split(b",")]


def _classify_splits(keys: list[str], where: str, neutral: bool) -> tuple[list[Sample], int]:
    """``classify`` for FER-2013, where every picture must have a split and a class."""
    samples, dropped = classify(keys, dataset="fer2013", where=where, neutral=neutral)
    for sample in samples:
        if sample.split is None or (sample.label is None and not neutral):
            raise KcdpError(f"{where} holds {sample.key}", _LAYOUT, "use folder: for pictures laid out otherwise")
    return samples, dropped
