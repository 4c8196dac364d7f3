"""Amortized variational inference on Pyro: one loss, an estimator for every latent site."""

from amortized.errors import AmortizedError as AmortizedError
from amortized.errors import CheckpointError as CheckpointError
from amortized.errors import DataError as DataError
from amortized.errors import EstimatorError as EstimatorError
from amortized.errors import NonFiniteError as NonFiniteError
from amortized.errors import ProgramError as ProgramError
from amortized.errors import UsageError as UsageError
from amortized.estimators.baselines import Constant as Constant
from amortized.estimators.baselines import LeaveOneOut as LeaveOneOut
from amortized.estimators.baselines import MovingAverage as MovingAverage
from amortized.estimators.baselines import NeuralBaseline as NeuralBaseline
from amortized.estimators.enumeration import Enumerate as Enumerate
from amortized.estimators.pathwise import Pathwise as Pathwise
from amortized.estimators.score_function import ScoreFunction as ScoreFunction
from amortized.fit.callbacks import Callback as Callback
from amortized.fit.callbacks import EarlyStopping as EarlyStopping
from amortized.fit.history import History as History
from amortized.fit.load import load as load
from amortized.fit.loggers import TensorBoard as TensorBoard
from amortized.fit.model_checkpoint import ModelCheckpoint as ModelCheckpoint
from amortized.fit.program import Program as Program
from amortized.fit.svi import SVI as SVI
from amortized.loss import VariationalLoss as VariationalLoss
from amortized.objectives.elbo import ELBO as ELBO
from amortized.programs.fold import Fold as Fold
from amortized.programs.records import DataPlate as DataPlate
