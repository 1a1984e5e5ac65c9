"""FedKD: a client's own mentor and a small shared mentee learn from its samples and from each other.

Wu, Wu, Lyu, Huang, Xie, "Communication-Efficient Federated Learning via Knowledge Distillation", Nature Communications
13, 2022, arXiv 2108.13323. Adaptive mutual distillation: to the task losses `L_t` and `L_s` of mentor and mentee are
added `KL(p_s || p_t) / (L_t + L_s)` for the mentor and `KL(p_t || p_s) / (L_t + L_s)` for the mentee; in each, the
other's probabilities and the denominator count as constants. The paper's losses on hidden states and its compression by
singular values are left out.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import kl_div

from flrl.lightning.local_step import LocalStep
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem


class FedKD(FedAvg):
    """FedAvg of the mentee; the mentor is the client's own. For modules with parts of these names, as `Mentored`.

    The module's loss has to be the sum of both task losses, and both parts give class scores.

    Args:
        mutual: factor of the distillation losses; with 0 the mentee is trained as by FedAvg.
        personal: as for `Strategy`; the mentor by default.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    observes = ("mentor", "mentee")

    def __init__(self, *, mutual: float = 1.0, personal: Sequence[str] = ("mentor.*",), **options: Any) -> None:
        super().__init__(personal=personal, **options)
        if not 0 <= mutual < float("inf"):
            raise ValueError(f"strategy.mutual={mutual}: must be at least 0 and finite")
        self.mutual = mutual

    def personal_model(self, problem: LocalProblem) -> None:
        """None: predictions are the mentee's, which is shared; the mentor only teaches."""
        return None

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        """Add the distillation losses."""
        mentor, mentee = (step.outputs[name].log_softmax(dim=1) for name in self.observes)
        both = _divergence(mentee, mentor) + _divergence(mentor, mentee)
        return loss + self.mutual * both / loss.detach()


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """`KL(teacher || student)`, the mean over samples, for the student alone; of log-probabilities `[n, classes]`."""
    return kl_div(student, teacher.detach(), reduction="batchmean", log_target=True)
