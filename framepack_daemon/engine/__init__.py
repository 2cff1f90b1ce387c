"""FramePack image-to-video on diffusers: models, section loop, checkpoints. The only package that imports torch."""
