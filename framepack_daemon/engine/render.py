"""From a request to a video, as a generator of events.

`render` samples section after section, checkpoints each, decodes and encodes it, and joins the segments at the end. Its
consumer sees every step and stops it with `close()`, which saves the step; calling it again goes on from there, and
ends in the same frames. Everything it writes lies in `scratch`. Knows nothing of queues.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from framepack_daemon import atomic
from framepack_daemon.engine import checkpoint, conditioning, decode, sampler
from framepack_daemon.engine.schedule import Order
from framepack_daemon.engine.segments import Segments
from framepack_daemon.errors import OutOfMemoryError, VideoError
from framepack_daemon.media import image as pictures
from framepack_daemon.media import video
from framepack_daemon.request import NATIVE_SAMPLING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from framepack_daemon.engine.conditioning import Conditioning
    from framepack_daemon.engine.models import Models
    from framepack_daemon.engine.schedule import History
    from framepack_daemon.media.video import VideoFacts
    from framepack_daemon.request import Request

VIDEO = "video.mp4"
POSTER = "poster.jpg"
FINISHED = "finished.json"
KIBIBYTE = 1024


@dataclass(frozen=True)
class Started:
    """The texts and pictures are encoded; sampling begins."""

    sections: int
    steps: int  # of each section
    width: int  # pixels
    height: int  # pixels
    resumed_section: int | None  # counted from 1; None when it starts afresh
    resumed_step: int  # steps of that section that are done already
    note: str  # what a person should know about the resumption, or nothing


@dataclass(frozen=True)
class Step:
    """A step is done."""

    section: int  # counted from 1
    sections: int
    step: int  # counted from 1
    steps: int
    seconds: float  # that it took


@dataclass(frozen=True)
class Section:
    """A section is sampled and its checkpoint on disk."""

    section: int  # counted from 1
    sections: int
    frames_ready: int  # frames of the video that are final
    seconds: float  # since the section began in this process


@dataclass(frozen=True)
class Finished:
    """The video stands in scratch, verified."""

    video: Path
    poster: Path
    facts: VideoFacts
    timings: dict[str, float]  # seconds by kind of work, of this process
    peak_gpu_bytes: int
    peak_host_bytes: int
    resumed_from: int | None  # section, counted from 1


Event = Started | Step | Section | Finished


def render(request: Request, models: Models, image: Path, last_image: Path | None, scratch: Path) -> Iterator[Event]:
    """The events of rendering `request`, whose seed is drawn, in the folder `scratch`.

    A finished video of the same request found there is given back as it is. Close the generator to stop after a step.

    Raises:
        OutOfMemoryError: the device is too small.
        ImageError: a picture cannot be used.
        VideoError: the video came out wrong; scratch is cleared, and trying again starts afresh.
        OSError: scratch cannot be written.
    """
    if request.seed < 0:
        raise ValueError("the seed must be drawn before rendering")
    rendering = _Rendering(request, models, image, last_image, scratch)
    finished = rendering.found()
    if finished is not None:
        yield finished
        return
    try:
        yield from rendering.run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{models.device} ran out of memory at this size",
            hint="free its memory, or ask for a smaller resolution",
        ) from error


class _Rendering:
    """One call of `render`."""

    def __init__(self, request: Request, models: Models, image: Path, last_image: Path | None, scratch: Path) -> None:
        self.request = request
        self.models = models
        self.pictures = image, last_image
        self.scratch = scratch
        sampling = request.sampling or NATIVE_SAMPLING[models.name]
        self.order = Order(backwards=sampling == "inverted_anti_drifting", sections=request.sections)
        self.job = checkpoint.identity(request, models, image, last_image)
        self.store = checkpoint.Store(scratch, self.job, models)
        self.generator = torch.Generator().manual_seed(request.seed)
        self.joiner = decode.Joiner(self.order)
        self.timings: defaultdict[str, float] = defaultdict(float)
        self.resumed_from: int | None = None

    def found(self) -> Finished | None:
        """What an earlier call finished here."""
        record = atomic.read_json(self.scratch / FINISHED) or {}
        try:
            facts = video.probe(self.scratch / VIDEO) if record.get("job") == self.job else None
        except (VideoError, FileNotFoundError):
            return None
        if facts is None or asdict(facts) != record.get("facts") or not (self.scratch / POSTER).is_file():
            return None
        return Finished(self.scratch / VIDEO, self.scratch / POSTER, facts, record["timings"], 0, 0, None)

    def run(self) -> Iterator[Event]:
        """Everything from the first step that is not done yet."""
        if self.models.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.models.device)
        with self._timed("encode"):
            first, last = (pictures.load(path) if path else None for path in self.pictures)
            assert first is not None
            told = conditioning.prepare(self.request, self.models, first, last)
        with Segments(self.scratch, self.order, self.request) as segments:
            kept, begin, note = self._restore(segments, told)
            progress = self.store.load_step(begin)
            self.resumed_from = begin + 1 if begin or progress else None
            yield Started(
                sections=self.order.sections,
                steps=self.request.num_inference_steps,
                width=told.width,
                height=told.height,
                resumed_section=self.resumed_from,
                resumed_step=progress.step if progress else 0,
                note=note,
            )
            for section in range(begin, self.order.sections):
                started = time.monotonic()
                latents = yield from self._sample(section, told, kept, progress)
                progress = None
                kept = self.order.grow(kept, latents, told.image_latents, section)
                with self._timed("write"):
                    # Only now may the checkpoint go from which the segment before this one could be decoded.
                    segments.wait()
                    self.store.save(section + 1, kept, self.generator)
                self._decode(section, kept, segments)
                ready = sum(segments.frames(done) for done in range(section + 1))
                yield Section(section + 1, self.order.sections, ready, time.monotonic() - started)
            yield self._finish(segments, told)

    def _restore(self, segments: Segments, told: Conditioning) -> tuple[torch.Tensor, int, str]:
        """(kept latent frames, section to begin with, note) from the checkpoint, or for a fresh start."""
        saved = self.store.load()
        note = ""
        if saved is not None and all(segments.is_written(section) for section in range(saved.next_section - 1)):
            self.generator.set_state(saved.generator)
            self._rebuild_edge(saved.next_section - 1, saved.kept, segments)
            if not self.store.is_from_here(saved):
                note = "resumed under other conditions: its frames may differ in their last bits"
            return saved.kept, saved.next_section, note
        if self.store.load_step(0) is None:
            if self.store.has_files:
                note = "the checkpoint is damaged or of another request, model or solver: started afresh"
            self._clear(segments)
        return self.order.start(told.image_latents), 0, note

    def _clear(self, segments: Segments) -> None:
        """Remove all of a job's files from scratch."""
        self.store.clear()
        segments.clear()
        for name in (FINISHED, VIDEO, POSTER):
            (self.scratch / name).unlink(missing_ok=True)

    def _rebuild_edge(self, done: int, kept: torch.Tensor, segments: Segments) -> None:
        """Bring the joiner to where it was after section `done`, and write its segment if that is missing."""
        if segments.is_written(done):
            if not self.order.is_last(done):
                self.joiner.prime(decode.decode(self.models, self.order.window(kept, done)))
            return
        if done > 0:
            before = self.order.window(kept, done - 1, back=1)
            self.joiner.prime(decode.decode(self.models, before))
        self._decode(done, kept, segments)

    def _sample(
        self, section: int, told: Conditioning, kept: torch.Tensor, resumed: sampler.Progress | None
    ) -> Generator[Step, None, torch.Tensor]:
        """The steps of one section; returns its latents. Closed at a step, it saves where it was."""
        noise = sampler.draw_noise(told, self.generator, self.models.device)
        begin = progress = resumed or sampler.Progress(0, noise)
        context = sampler.Context(
            self.request, self.models, told, self.order.indices(section), self._history(section, told, kept)
        )
        started = time.monotonic()
        for progress in sampler.denoise(context, begin):
            seconds = time.monotonic() - started
            self.timings["sample"] += seconds
            try:
                yield Step(section + 1, self.order.sections, progress.step, self.request.num_inference_steps, seconds)
            except GeneratorExit:
                self.store.save_step(section, progress)
                raise
            started = time.monotonic()
        return progress.latents

    def _history(self, section: int, told: Conditioning, kept: torch.Tensor) -> History:
        """What `section` sees of the kept latent frames; the first one meets the end frame, where there is one."""
        history = self.order.history(kept)
        if section == 0 and told.last_latents is not None:
            return replace(history, nearest=told.last_latents)
        return history

    def _decode(self, section: int, kept: torch.Tensor, segments: Segments) -> None:
        """Decode the newest window and hand its final frames to the encoder."""
        with self._timed("decode"):
            frames = decode.decode(self.models, self.order.window(kept, section))
            final = self.joiner.add(frames, section)
            segments.put(section, final)

    def _finish(self, segments: Segments, told: Conditioning) -> Finished:
        """Join, verify and record the video."""
        target, poster = self.scratch / VIDEO, self.scratch / POSTER
        with self._timed("write"):
            try:
                segments.join(target)
                facts = video.verify(target, frames=self.request.video_frames, width=told.width, height=told.height)
                video.write_poster(target, poster)
            except VideoError:
                self._clear(segments)
                raise
        record = {"job": self.job, "facts": asdict(facts), "timings": dict(self.timings)}
        atomic.write_json(self.scratch / FINISHED, record)
        on_gpu = self.models.device.type == "cuda"
        return Finished(
            video=target,
            poster=poster,
            facts=facts,
            timings=dict(self.timings),
            peak_gpu_bytes=torch.cuda.max_memory_allocated(self.models.device) if on_gpu else 0,
            peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE,
            resumed_from=self.resumed_from,
        )

    @contextmanager
    def _timed(self, work: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings[work] += time.monotonic() - started
