"""Names in a job's scratch that the worker writes and the daemon takes: said once, for both sides.

What only the worker reads (checkpoints, segments) is named where it is written. Pure.
"""

VIDEO = "video.mp4"
POSTER = "poster.jpg"
ANIMATIONS = {"webp": "animation.webp", "gif": "animation.gif"}  # by the request's `animation`
LATENTS = "latents.safetensors"  # what another job needs to continue this one
PREVIEW = "preview.mp4"  # what is rendered so far; replaced after each section
STEP_PICTURE = "step.jpg"  # of the section in work; replaced at most once a second
