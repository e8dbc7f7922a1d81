from semflow import (
    adapters as adapters,
)
from semflow import (
    app as app,
)
from semflow import (
    bases as bases,
)
from semflow import (
    data as data,
)
from semflow import (
    detectors as detectors,
)
from semflow import (
    errors as errors,
)
from semflow import (
    features as features,
)
from semflow import (
    files as files,
)
from semflow import (
    flows as flows,
)
from semflow import (
    functional as functional,
)
from semflow import (
    metrics as metrics,
)
from semflow import (
    nn as nn,
)
from semflow import (
    objectives as objectives,
)
from semflow import (
    recipes as recipes,
)
from semflow import (
    synthesis as synthesis,
)
from semflow import (
    testing as testing,
)
from semflow import (
    training as training,
)
from semflow._version import __version__ as __version__
from semflow.adapters import as_flow as as_flow
from semflow.adapters import with_memory as with_memory
from semflow.adapters import with_statistics as with_statistics
from semflow.detectors import Detector as Detector
from semflow.nn import InverseGammaVariance as InverseGammaVariance
from semflow.recipes import load as load
from semflow.recipes import save as save
from semflow.training import calibrate as calibrate
from semflow.training import evaluate as evaluate
from semflow.training import fit as fit
