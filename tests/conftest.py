"""Property tests are judged by what they find, not by how fast a busy machine is; the same examples every run."""

from hypothesis import settings

settings.register_profile("einsight", deadline=None, derandomize=True)
settings.load_profile("einsight")
