"""Safe decoding of pictures and writing of videos. Imports neither torch nor the queue."""
