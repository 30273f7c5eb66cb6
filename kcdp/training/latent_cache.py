"""A run's pictures as latents: each view of each picture goes through the frozen encoder once, before training.

A dataset's latents are in one folder per view, ``KEY-VIEW``; the key is a hash of all that decides them: the encoder's
weights, its scale and input, preprocessing, augmentation, seed, and the pictures (dataset string, keys, and size and
time of files; not their content). Runs, and the processes of one run, can fill one folder together: each takes a
view that nobody is working on, and waits for those that others are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from kcdp.config import Config
from kcdp.data.dataset import ImageDataset
from kcdp.data.loader import TensorDataset, view_batches
from kcdp.data.registry import parse_spec
from kcdp.errors import KcdpError
from kcdp.files import make_folder
from kcdp.knowledge.lock import LockedError, writer_lock
from kcdp.models.kadap import Kadap
from kcdp.models.network import EmotionNetwork
from kcdp.training.engine import Engine
from kcdp.training.interrupts import interrupts_raise
from kcdp.training.latent_store import CachedLatents, StoredView, ViewWriter
from kcdp.training.progress import Pictures
from kcdp.training.unreadable import check_unreadable, passed_over

#: Folder of a run: latents, where ``training.latents`` names no other.
LATENTS = "latents"
#: Counted up when augmentation or preprocessing change what they make of a picture.
VERSION = 1
#: Seconds between two looks at views that other processes are working on.
POLL = 0.5


@dataclass(frozen=True)
class Job:
    """One view of one dataset.

    Attributes:
        view: where it is kept.
        data: the pictures.
        number: of the view, the pass that sees it.
    """

    view: StoredView
    data: TensorDataset
    number: int


def cached_pictures(
    pictures: Pictures, model: EmotionNetwork, teacher: EmotionNetwork, config: Config, engine: Engine, run: Path,
    workers: int = 0,
) -> Pictures:  # fmt: skip
    """The same pictures as latents; those that are not on disk yet are made now.

    Announces what it takes. An interrupt loses nothing: the next call goes on from there.

    Args:
        model: whose encoder it is, on ``engine``'s device.
        teacher: must see the same latents.
        run: the run folder; see ``training.latents``.
        workers: processes that read pictures.

    Raises:
        KcdpError: the encoder trains, or the teacher has another one; views without end; no room on the disk; more
            than 1 % of the training pictures, or one validation picture, cannot be read.
    """
    encoder = _check_encoders(model, teacher, config)
    assert isinstance(model, Kadap)
    folder = Path(config.training.latents or run / LATENTS)
    features, size = model.features.encoder, config.preprocess.size
    shape = (features.latent_channels, size // features.stride, size // features.stride)
    domains = {**pictures.domains(), "validation": pictures.validation}
    domains = {name: data.with_latents(None) for name, data in domains.items()}  # an earlier call may have given some
    jobs = {name: _jobs(data, encoder, shape, folder) for name, data in domains.items()}
    missing = {job.view.folder: job for views in jobs.values() for job in views if not job.view.complete()}
    if missing:
        make_folder(folder)
        _check_room(list(missing.values()), sum(map(len, jobs.values())), folder, engine.is_main)
        batch = max(1, config.training.batch_size // config.training.accumulate)
        with interrupts_raise():
            _work(list(missing.values()), model, engine, batch, workers)
    views = {name: CachedLatents([job.view for job in jobs[name]]) for name in domains}
    cached = {name: data.with_latents(views[name]) for name, data in domains.items()}
    return Pictures(cached["source"], cached["validation"], cached.get("target"))


def encoder_fingerprint(model: Kadap) -> str:
    """SHA-256 of all that decides what a model's encoder makes of bytes: layers, weights, scale, input scaling."""
    encoder = model.features.encoder
    digest = hashlib.sha256(f"{encoder} {encoder.has_posterior} {encoder.scaling_factor}".encode())
    tensors = {**encoder.state_dict(), "input.scale": model.scale, "input.shift": model.shift}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pictures_fingerprint(dataset: ImageDataset) -> str:
    """SHA-256 of all that tells a dataset's pictures without opening them: names, keys, size and time of files."""
    digest = hashlib.sha256()
    stamps: dict[str, str] = {}
    for index, sample in enumerate(dataset.samples):
        name, path = dataset.name_of(index), dataset.path_of(index)
        if name not in stamps:
            stamps[name] = _stamp(_file_of(name))
        digest.update(f"{name}\0{stamps[name]}\0{sample.key}\0{_stamp(path)}\n".encode())
    return digest.hexdigest()


def _check_encoders(model: EmotionNetwork, teacher: EmotionNetwork, config: Config) -> str:
    """The fingerprint of the one encoder; see ``cached_pictures``."""
    config.check_latents()
    assert isinstance(model, Kadap)
    assert not any(p.requires_grad for p in model.features.encoder.parameters())
    encoder = encoder_fingerprint(model)
    if isinstance(teacher, Kadap) and teacher is not model and encoder_fingerprint(teacher) != encoder:
        raise KcdpError(
            f"training.cache_latents is true and the teacher {config.training.init_from} has another encoder",
            "one encoder for both", "leave out training.cache_latents, or the settings that changed the encoder",
        )  # fmt: skip
    return encoder


def _jobs(data: TensorDataset, encoder: str, shape: tuple[int, int, int], folder: Path) -> list[Job]:
    if not data.distinct_views:
        raise KcdpError(
            "training.cache_latents is true and training.views 0", "a number of views to keep, such as 4",
            "add --set training.views=4",
        )  # fmt: skip
    dataset = data.dataset
    about = {
        "version": VERSION, "encoder": encoder, "preprocess": asdict(data.spec), "dataset": dataset.name,
        "pictures": pictures_fingerprint(dataset), "augmentation": data.augmentation, "strong": data.strong,
        "seed": data.seed if data.augmentation != "none" or data.strong else None,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return [
        Job(StoredView(folder / f"{key}-{number}", len(data), shape, bool(data.strong), {**about, "view": number}),
            data, number)
        for number in range(data.distinct_views)
    ]  # fmt: skip


def _check_room(missing: Sequence[Job], total: int, folder: Path, speak: bool) -> None:
    """Announces what is to be made, or raises KcdpError where the disk has no room for it."""
    need, free = sum(job.view.missing_bytes() for job in missing), shutil.disk_usage(folder).free
    if need > free:
        raise KcdpError(
            f"latents need {_gigabytes(need)} and {folder} has {_gigabytes(free)} free", "room for all of them",
            "free some space, lower training.views, or name another folder with training.latents",
        )  # fmt: skip
    if speak:
        tqdm.write(f"latents: {len(missing)} of {total} views to encode, {_gigabytes(need)} in {folder} "
                   f"({_gigabytes(free)} free)")  # fmt: skip


def _work(jobs: list[Job], model: Kadap, engine: Engine, batch_size: int, workers: int) -> None:
    """Encodes until every view is there, be it by this process or another one."""
    first = engine.share.rank * len(jobs) // engine.share.world  # each process begins elsewhere
    left, told = [*jobs[first:], *jobs[:first]], False
    silent = None if engine.is_main else True  # None: only on a terminal
    with tqdm(total=sum(len(job.data) for job in jobs), desc="latents", unit="picture", disable=silent) as bar:
        while left:
            busy = []
            for job in left:
                try:
                    with writer_lock(job.view.lock):
                        if not job.view.complete():
                            _encode(job, model, engine, batch_size, workers, bar)
                except LockedError as error:
                    busy.append(job)
                    if engine.share.world == 1 and not told:
                        tqdm.write(f"waiting: {error.received}")
                        told = True
            if len(busy) == len(left):
                time.sleep(POLL)
            left = busy


def _encode(job: Job, model: Kadap, engine: Engine, batch_size: int, workers: int, bar: tqdm) -> None:
    places: set[int] = set()
    with ViewWriter(job.view) as writer, _in_evaluation(model.features.encoder), torch.no_grad():
        bar.update(writer.rows)
        for batch in view_batches(job.data, job.number, writer.rows, batch_size, workers):
            assert batch.place is not None
            views = [images for images in (batch.images, batch.strong) if images is not None]
            latents = [model.encode(images.to(engine.device)).float().cpu().numpy() for images in views]
            writer.append(batch.place.numpy(), *latents)
            bar.update(len(batch.place))
            new = passed_over(batch, len(job.data)) - places
            if new:
                places |= new
                check_unreadable(job.data, [job.data.dataset.samples[place].key for place in sorted(places)])
        writer.finish()


@contextmanager
def _in_evaluation(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _file_of(name: str) -> Path | None:
    """The path in a dataset string."""
    try:
        return Path(parse_spec(name).path)
    except KcdpError:
        return None


def _stamp(path: Path | None) -> str:
    """Size and time of a file; empty where there is none."""
    if path is None or not os.path.isfile(path):
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
