"""The run folder: everything a run leaves behind, in a fixed layout that reports and later runs read.

    <root>/<name>/manifest.json        what ran: config, seed, device, versions, commit; written first
                  metrics.jsonl        the source of truth, one JSON object a line
                  gates/step-000120.json, gates/final.json
                  savings.json, summary.json, report.html, report_data/
                  checkpoint/          see checkpoint.py
                  model.safetensors    the weights at the end

JSON is strict: a float that is not finite is written as null. Standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from turnout.errors import ConfigError, DataError, nearest
from turnout.train.atomic import write_all, write_error
from turnout.train.jsonfile import read_json, to_json, write_json

FORMAT = 1
"""Version of the folder layout; a reader refuses a larger one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder. Holds no open file: any number may look at the same run, one process writes it.

    Attributes:
        path: the folder.
        manifest: what `manifest.json` holds.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str | None,
        *,
        config_dict: Mapping[str, Any],
        exist: Literal["error", "resume"] = "error",
        manifest: Mapping[str, Any] | None = None,
        stem: str = "run",
    ) -> RunDir:
        """Make a new run folder with its manifest, or open the one to resume.

        Args:
            root: folder of all runs, made when missing.
            name: folder name; None takes the first free `<stem>-<n>`, n = 1, 2, … (pass `stem=f"{recipe}-{seed}"`).
            config_dict: the resolved run config, as `turnout.config.to_dict` gives it.
            exist: what to do when the run is there: refuse, or open it, which needs an equal config.
            manifest: further entries of manifest.json, as `build_manifest` gives them. On resume the first manifest is
                kept and this one is appended to its list "resumed".
            stem: beginning of a generated name.
        Raises:
            ConfigError: the name is taken (without "resume"), there is no such run (with it), the name is not a folder
                name, or the config to resume differs.
            DataError: the folder is not a run folder, was written by a newer version, or cannot be written.
        """
        root = Path(root)
        wanted = f"{stem}-1" if name is None else name
        if not _NAME.fullmatch(wanted):
            raise ConfigError(f"run name {wanted!r} is not a folder name; use letters, digits and . _ + = - only")
        config = json.loads(to_json(config_dict))
        if exist == "resume":
            return _resume(root, name, config, manifest)
        path = _make_folder(root, name, stem)
        entries = {"format": FORMAT, "name": path.name, **(manifest or {}), "config": config}
        run = cls(path, json.loads(to_json(entries)))
        run.write_json("manifest.json", run.manifest)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """Open an existing run folder, to read it or to go on with it.

        Raises:
            DataError: no such folder (names the nearest run beside it), not a run folder, or a newer format.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"no run folder at {path}{nearest(path.name, list_runs(path.parent))}")
        return cls(path, _read_manifest(path))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        """The run config as a dictionary; `turnout.config.from_dict` makes it a config again."""
        return typing.cast(dict[str, Any], self.manifest["config"])

    @property
    def checkpoint_dir(self) -> Path:
        """Folder for `checkpoint.save` and `checkpoint.load`; either makes or refuses it as needed."""
        return self.path / "checkpoint"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. It is in the file when this returns, also if the process is killed next.

        Raises:
            DataError: the line could not be written whole; the file is as it was before.
        """
        line = (to_json(record) + "\n").encode()
        try:
            descriptor = os.open(self.metrics_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                _append_line(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_error(error, self.metrics_path, len(line)) from error

    def sync(self) -> None:
        """Force metrics.jsonl to the disk; call it before a checkpoint so that a power cut cannot lose older lines."""
        if not self.metrics_path.exists():
            return
        try:
            descriptor = os.open(self.metrics_path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_error(error, self.metrics_path) from error

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every metrics line in order, or those of one kind ("train", "eval", "event"). Empty before the first line.

        A last line that a kill cut short is left out.

        Raises:
            DataError: another line is not a JSON object.
        """
        records = [record for _, record in self._lines()]
        return records if kind is None else [record for record in records if record.get("kind") == kind]

    def position(self) -> int:
        """Bytes of metrics.jsonl so far: keep it in the checkpoint's state, and hand it to `rewind` on resume."""
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def rewind(self, step: int, position: int | None = None) -> None:
        """Forget what was written after a checkpoint, so that the resumed run writes what one never interrupted would.

        Cuts metrics.jsonl, and removes gate files of later steps and what killed writes left.

        Args:
            step: of the checkpoint; metrics are cut before the first line of a later step.
            position: what `position()` said when it was saved; metrics are cut there. Exact, also when lines of the
                same step were written after the checkpoint, as the final evaluation is.
        Raises:
            DataError: a line is damaged, or the metrics end before `position`.
        """
        keep = 0
        for end, record in self._lines():
            written_at = record.get("step")
            after = isinstance(written_at, int) and written_at > step if position is None else end > position
            if after:
                break
            keep = end
        if position is not None and keep != position:
            raise DataError(
                f"{self.metrics_path} ends its lines at byte {keep}, but the checkpoint was saved at byte {position}; "
                "the file was changed: restore it, or start the run again under another name"
            )
        try:
            if self.metrics_path.exists():
                os.truncate(self.metrics_path, keep)
            later = [path for path in self.gate_files() if int(path.stem.partition("-")[2]) > step]
            for path in itertools.chain(later, self.path.glob(".*.tmp"), self.path.glob("gates/.*.tmp")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, self.path) from error

    def write_json(self, name: str, value: Any, *, indent: int | None = 1) -> Path:
        """Write `value` as JSON to the file `name` (may hold one folder: "gates/final.json"), all or nothing.

        Raises:
            DataError: the file could not be written; what was there before is kept.
        """
        path = self.path / name
        _make(path.parent)
        write_json(path, value, indent=indent)
        return path

    def read_json(self, name: str) -> Any:
        """What the JSON file `name` holds, None when it has not been written.

        Raises:
            DataError: the file cannot be read or is not JSON.
        """
        return read_json(self.path / name) if (self.path / name).exists() else None

    def write_gates(self, gates: Mapping[str, Any], *, final: bool = False) -> Path:
        """Write one gate map to `gates/step-<step>.json`, and to `gates/final.json` too when it is the last."""
        path = self.write_json(f"gates/step-{gates['step']:06d}.json", gates, indent=None)
        if final:
            self.write_json("gates/final.json", gates, indent=None)
        return path

    def gate_files(self) -> list[Path]:
        """Gate maps by step, oldest first, without `final.json`."""
        found = [path for path in self.path.glob("gates/step-*.json") if path.stem[len("step-") :].isdigit()]
        return sorted(found, key=lambda path: int(path.stem.partition("-")[2]))

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        return self.write_json("summary.json", summary)

    def summary(self) -> dict[str, Any] | None:
        """What `summary.json` holds; None while the run is not finished."""
        return typing.cast("dict[str, Any] | None", self.read_json("summary.json"))

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Complete metrics lines with the byte offset of their end."""
        if not self.metrics_path.exists():
            return
        end = 0
        with open(self.metrics_path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise DataError(
                        f"{self.metrics_path} line {number} is {line[:60]!r}; expected one JSON object a line; "
                        "the file was changed or damaged: remove that line, or start the run again"
                    )
                yield end, record


def list_runs(root: str | Path) -> list[str]:
    """Names of the run folders in `root`, oldest manifest first; empty when `root` does not exist."""
    manifests = [path for path in Path(root).glob("*/manifest.json") if path.is_file()]
    return [path.parent.name for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path))]


def _append_line(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    # A line that a kill cut short would swallow the next one.
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = os.pread(descriptor, size, 0)
        size = content.rfind(b"\n") + 1
        os.ftruncate(descriptor, size)
    try:
        write_all(descriptor, line)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _make_folder(root: Path, name: str | None, stem: str) -> Path:
    """A new, empty folder: of that name, or of the first free generated one (also when another process picks names)."""
    _make(root)
    if name is None:
        candidates = (root / f"{stem}-{number}" for number in itertools.count(1))
        return next(path for path in candidates if _make(path))
    path = root / name
    # A kill between mkdir and the manifest leaves a folder with nothing in it but a temporary file.
    if _make(path) or (path.is_dir() and all(entry.name.endswith(".tmp") for entry in path.iterdir())):
        return path
    if (path / "manifest.json").exists():
        raise ConfigError(f"run {path} already exists; continue it with --resume, or choose another name")
    raise ConfigError(f"{path} already exists and is not a run; choose another name; nothing there was changed")


def _make(folder: Path) -> bool:
    """Make a folder and its parents; False when it (or a file of that name) is there already."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise write_error(error, folder) from error
    return True


def _resume(root: Path, name: str | None, config: Any, manifest: Mapping[str, Any] | None) -> RunDir:
    runs = list_runs(root)
    if name is None:
        raise ConfigError(f"resume needs the name of the run{nearest('', runs)}")
    if not (root / name).is_dir():
        raise ConfigError(f"no run {name!r} to resume in {root}{nearest(name, runs)}; start it without --resume")
    run = RunDir.open(root / name)
    changed = [f"{key}: {old} -> {new}" for key, old, new in _differences(run.config, config)]
    if changed:
        raise ConfigError(
            f"run {name!r} has another config than the one to resume with ({'; '.join(changed[:5])}"
            f"{'; …' if len(changed) > 5 else ''}); resume with the same settings, or start a run under another name"
        )
    if manifest is None:
        return run
    again = {key: value for key, value in json.loads(to_json(manifest)).items() if key != "config"}
    longer = {**run.manifest, "resumed": [*run.manifest.get("resumed", []), again]}
    run.write_json("manifest.json", longer)
    return RunDir(run.path, longer)


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            missing = "(not set)"
            yield from _differences(old.get(key, missing), new.get(key, missing), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, str(old), str(new)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    foreign = f"{path} is not a run folder of this library"
    if not file.exists():
        raise DataError(f"{foreign}: it has no manifest.json; give the path of a run, such as runs/NAME")
    manifest = read_json(file)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or not isinstance(manifest.get("config"), dict):
        raise DataError(
            f"{foreign}: its manifest.json has format {version!r}; expected an integer format and a table config; "
            "give the path of a run, such as runs/NAME"
        )
    if version > FORMAT:
        raise DataError(
            f"{path} has run format {version}, written by a newer version of this library; this one reads up to "
            f"{FORMAT}; upgrade it to read this run"
        )
    return typing.cast(dict[str, Any], manifest)
