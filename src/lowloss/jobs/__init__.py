"""The jobs of a study: what is kept on disk, a kind a file. Stages are found by what these files declare."""
