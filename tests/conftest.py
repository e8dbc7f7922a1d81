"""Settings of the whole suite: hypothesis without deadlines (machines are shared), and with fixed examples in CI."""

import os

from hypothesis import settings

settings.register_profile("semflow", deadline=None)
settings.register_profile("semflow-ci", deadline=None, derandomize=True)
settings.load_profile("semflow-ci" if os.environ.get("CI") else "semflow")

# --doctest-modules would import each folder's conftest under the one name "conftest".
collect_ignore_glob = ["conftest.py", "*/conftest.py"]
