"""From a request to a video, as a generator of events.

`render` samples section after section, checkpoints each, decodes and encodes it, and joins the segments at the end. Its
consumer sees every step and stops it with `close()`, which saves the step; calling it again goes on from there, and
ends in the same frames. Everything it writes lies in `scratch`. Knows nothing of queues.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from framepack_daemon import atomic
from framepack_daemon.engine import (
    adapters,
    checkpoint,
    conditioning,
    continuation,
    decode,
    memory,
    provenance,
    sampler,
)
from framepack_daemon.engine.continuation import Ending
from framepack_daemon.engine.events import Event, Finished, Section, Started, Step
from framepack_daemon.engine.glimpse import Glimpse
from framepack_daemon.engine.schedule import Order
from framepack_daemon.engine.segments import EDGE, Segments
from framepack_daemon.engine.solver import State
from framepack_daemon.errors import ContinuationError, VideoError
from framepack_daemon.media import animation, encoders, video
from framepack_daemon.request import NATIVE_SAMPLING
from framepack_daemon.scratch import ANIMATIONS, LATENTS, POSTER, STEP_PICTURE, VIDEO

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from framepack_daemon.engine.conditioning import Conditioning
    from framepack_daemon.engine.models import Models
    from framepack_daemon.engine.schedule import History
    from framepack_daemon.engine.sources import Sources
    from framepack_daemon.media.video import VideoFacts
    from framepack_daemon.request import Request

FINISHED = "finished.json"
STEP_PICTURE_SECONDS = 1.0  # between two of them


def render(request: Request, models: Models, sources: Sources, scratch: Path) -> Iterator[Event]:
    """The events of rendering `request`, whose seed is drawn, in the folder `scratch`.

    A finished video of the same request found there is given back as it is. Close the generator to stop after a step.

    Raises:
        OutOfMemoryError: the device is too small.
        ImageError: a picture cannot be used.
        ContinuationError: the latents to go on from cannot be used.
        LoraError: a LoRA file does not fit the model.
        EncoderError: the codec cannot be written here.
        VideoError: the video came out wrong; scratch is cleared, and trying again starts afresh.
        OSError: scratch cannot be written.
    """
    if request.seed < 0:
        raise ValueError("the seed must be drawn before rendering")
    memory.forget_peaks(models.device)
    rendering = _Rendering(request, models, sources, scratch)
    finished = rendering.found()
    if finished is not None:
        yield finished
        return
    with memory.exhaustion_explained("at this size", models.device, models.plan):
        yield from rendering.run()


class _Rendering:
    """One call of `render`."""

    def __init__(self, request: Request, models: Models, sources: Sources, scratch: Path) -> None:
        self.request = request
        self.models = models
        self.sources = sources
        self.scratch = scratch
        sampling = request.sampling or NATIVE_SAMPLING[models.name]
        backwards = sampling == "inverted_anti_drifting"
        continues = sources.latents is not None and not backwards
        self.order = Order(backwards=backwards, sections=request.sections, continues=continues)
        self.job = checkpoint.identity(request, models, sources)
        self.store = checkpoint.Store(scratch, self.job, models)
        self.generator = torch.Generator().manual_seed(request.seed)
        self.joiner = decode.Joiner(self.order)
        self.timings: defaultdict[str, float] = defaultdict(float)
        self.resumed_from: int | None = None
        self.ending: torch.Tensor | None = None  # the video's last latent frames so far, where they are kept
        self.glimpse: Glimpse | None = None
        self.glimpsed = float("-inf")  # monotonic

    def found(self) -> Finished | None:
        """What an earlier call finished here."""
        record = atomic.read_json(self.scratch / FINISHED) or {}
        try:
            facts = video.probe(self.scratch / VIDEO) if record.get("job") == self.job else None
        except (VideoError, FileNotFoundError):
            return None
        files = [path for path in (self.scratch / POSTER, self.animation, self.latents) if path]
        if facts is None or asdict(facts) != record.get("facts") or not all(path.is_file() for path in files):
            return None
        return self._finished(facts, record["timings"])

    def run(self) -> Iterator[Event]:
        """Everything from the first step that is not done yet."""
        self._sweep()
        with self._timed("encode"):
            told, before = self._prepare()
            encoders.require(self.request.codec, told.width, told.height)  # a section later it would be too late
        with Segments(self.scratch, self.order, self.request) as segments:
            kept, begin, note = self._restore(segments, before)
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
                latents = yield from self._sample(section, told, kept, progress, segments)
                progress = None
                kept = self.order.grow(kept, latents, told.image_latents, section)
                if self.request.keep_latents:
                    self.ending = continuation.grow(self.ending, kept, self.order, section)
                with self._timed("write"):
                    # Only now may the checkpoint go from which the segment before this one could be decoded.
                    segments.wait()
                    self.store.save(section + 1, kept, self.generator, self.ending)
                self._decode(section, kept, segments)
                ready = sum(segments.frames(done) for done in range(section + 1))
                yield Section(
                    section=section + 1,
                    sections=self.order.sections,
                    frames_ready=ready,
                    seconds=time.monotonic() - started,
                    preview=segments.preview_is_new(),
                )
            yield self._finish(segments, told)

    def _sweep(self) -> None:
        """Remove what a call that was killed had half written: this one need not write the same files again."""
        for pattern in (EDGE, ".*.part", ".*.tmp"):
            for left in self.scratch.glob(pattern):
                left.unlink(missing_ok=True)

    def _prepare(self) -> tuple[Conditioning, torch.Tensor]:
        """What the transformer is told, and the latent frame (or frames) that the video begins after."""
        adapters.use(self.models, self.sources.loras)
        ending = self.sources.ending(self.models.device)
        picture = self.sources.picture()
        if ending is not None and self.order.backwards:
            picture = continuation.last_frame(self.models, ending)
        last_picture = self.sources.last_picture()
        told = conditioning.prepare(self.request, self.models, picture, last_picture)
        if self.request.step_preview:
            self.glimpse = Glimpse(conditioning.fit(picture, told.height, told.width), told.image_latents)
        if ending is not None and ending.size != (told.height, told.width):
            raise ContinuationError(
                f"the video that is continued has {ending.size[1]}x{ending.size[0]} pixels, and this one "
                f"{told.width}x{told.height}",
                hint="give the same width and height",
            )
        if ending is not None and self.order.continues:
            return replace(told, image_latents=ending.image_latents), ending.latents
        return told, told.image_latents

    def _restore(self, segments: Segments, before: torch.Tensor) -> tuple[torch.Tensor, int, str]:
        """(kept latent frames, section to begin with, note) from the checkpoint, or for a fresh start."""
        saved = self.store.load()
        note = ""
        if saved is not None and all(segments.is_written(section) for section in range(saved.next_section - 1)):
            self.generator.set_state(saved.generator)
            self.ending = saved.ending
            self._rebuild_edge(saved.next_section - 1, saved.kept, segments)
            if not self.store.is_from_here(saved):
                note = "resumed under other conditions: its frames may differ in their last bits"
            return saved.kept, saved.next_section, note
        if self.store.load_step(0) is None:
            if self.store.has_files:
                note = "the checkpoint is damaged or of another request, model or solver: started afresh"
            self._clear(segments)
        return self.order.start(before), 0, note

    def _clear(self, segments: Segments) -> None:
        """Remove all of a job's files from scratch."""
        self.store.clear()
        segments.clear()
        for name in (FINISHED, VIDEO, POSTER, STEP_PICTURE, LATENTS, *ANIMATIONS.values()):
            (self.scratch / name).unlink(missing_ok=True)

    def _rebuild_edge(self, done: int, kept: torch.Tensor, segments: Segments) -> None:
        """Bring the joiner to where it was after section `done`, and write its segment if that is missing."""
        if segments.is_written(done):
            if not self.order.is_last(done):
                self.joiner.prime(self._frames(done, kept))
            return
        if done > 0:
            self.joiner.prime(self._frames(done - 1, kept, back=1))
        self._decode(done, kept, segments)

    def _frames(self, section: int, kept: torch.Tensor, *, back: int = 0) -> torch.Tensor:
        """The frames of a section's window without those of a video that it continues; `back` as in `Order.window`."""
        frames = decode.decode(self.models, self.order.window(kept, section, back=back))
        return frames[:, :, self.order.lead(section) :]

    def _sample(
        self,
        section: int,
        told: Conditioning,
        kept: torch.Tensor,
        resumed: State | None,
        segments: Segments,
    ) -> Generator[Step, None, torch.Tensor]:
        """The steps of one section; returns its latents. Closed at a step, it saves where it was."""
        noise = sampler.draw_noise(told, self.generator, self.models.device)
        begin = progress = resumed or State(0, noise)
        context = sampler.Context(
            self.request,
            self.models,
            told,
            told.prompts[self.request.text_at(self.order.seconds(section))],
            self.order.indices(section),
            self._history(section, told, kept),
        )
        started = time.monotonic()
        for progress in sampler.denoise(context, begin):
            seconds = time.monotonic() - started
            self.timings["sample"] += seconds
            try:
                yield Step(
                    section=section + 1,
                    sections=self.order.sections,
                    step=progress.step,
                    steps=self.request.num_inference_steps,
                    seconds=seconds,
                    preview=segments.preview_is_new(),
                    picture=self._show(progress.guess),
                )
            except GeneratorExit:
                if self.request.cache == "none":  # what a cache remembers is not saved: the section begins anew
                    self.store.save_step(section, progress)
                raise
            started = time.monotonic()
        return progress.latents

    def _show(self, latents: torch.Tensor | None) -> bool:
        """Write a picture of a section in work, if one is wanted and due."""
        if self.glimpse is None or latents is None or time.monotonic() - self.glimpsed < STEP_PICTURE_SECONDS:
            return False
        self.glimpse.write(latents, self.scratch / STEP_PICTURE)
        self.glimpsed = time.monotonic()
        return True

    def _history(self, section: int, told: Conditioning, kept: torch.Tensor) -> History:
        """What `section` sees of the kept latent frames; the first one meets the end frame, where there is one."""
        history = self.order.history(kept)
        if section == 0 and told.last_latents is not None:
            return replace(history, nearest=told.last_latents)
        return history

    def _decode(self, section: int, kept: torch.Tensor, segments: Segments) -> None:
        """Decode the newest window and hand its final frames to the encoder."""
        with self._timed("decode"):
            final = self.joiner.add(self._frames(section, kept), section)
            segments.put(section, final, self.joiner.edge)

    def _finish(self, segments: Segments, told: Conditioning) -> Finished:
        """Join, verify and record the video."""
        target, poster = self.scratch / VIDEO, self.scratch / POSTER
        with self._timed("write"):
            try:
                segments.join(target, provenance.metadata(self.request, self.models, self.sources.loras))
                facts = video.verify(
                    target,
                    frames=self.request.video_frames,
                    width=told.width,
                    height=told.height,
                    codec=self.request.codec,
                )
                video.write_poster(target, poster)
                if self.animation:
                    animation.write_animation(target, self.animation)
            except VideoError:
                self._clear(segments)
                raise
            if self.latents:
                assert self.ending is not None
                continuation.save_ending(self.latents, Ending(self.ending, told.image_latents))
        record = {"job": self.job, "facts": asdict(facts), "timings": dict(self.timings)}
        atomic.write_json(self.scratch / FINISHED, record)
        return self._finished(facts, dict(self.timings))

    def _finished(self, facts: VideoFacts, timings: dict[str, float]) -> Finished:
        peaks = memory.peaks(self.models.device)
        return Finished(
            video=self.scratch / VIDEO,
            poster=self.scratch / POSTER,
            animation=self.animation,
            latents=self.latents,
            facts=facts,
            timings=timings,
            peak_gpu_bytes=peaks.gpu,
            peak_host_bytes=peaks.host,
            resumed_from=self.resumed_from,
        )

    @property
    def animation(self) -> Path | None:
        """Where the small animated picture goes."""
        name = ANIMATIONS.get(self.request.animation)
        return self.scratch / name if name else None

    @property
    def latents(self) -> Path | None:
        """Where the last latents go."""
        return self.scratch / LATENTS if self.request.keep_latents else None

    @contextmanager
    def _timed(self, work: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings[work] += time.monotonic() - started
