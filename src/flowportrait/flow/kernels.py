"""Step kernels of flow samplers: the Gaussian transition of one step, and the likelihood ratio of a recorded step.

One step of any sampler from σ to σ' < σ is affine-Gaussian, with dt = σ' − σ:

    x' ~ N(a·x + b·v, s²)

A kernel maps ``(σ, σ')`` to ``(a, b, s)`` and does nothing else; sampling, replay, log-ratios, KL and step weights
are derived from these three numbers.

    ODE        1                 dt                              0
    SDE(g)     1 + g²dt/2σ       dt·(1 + g²(1−σ)/2σ)             g·√−dt
    CPS        (1−σ') + c        −σ(1−σ') + (1−σ)·c              σ'·sin(ηπ/2),   c = σ'·cos(ηπ/2)

Sources: Flow-GRPO (2505.05470), DanceGRPO (2505.07818), LongCat-Video (2510.22200), CPS (2509.05952).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch


class StepCoefficients(NamedTuple):
    """Coefficients of one transition, each broadcastable to the data."""

    a: torch.Tensor
    b: torch.Tensor
    s: torch.Tensor

    def mean(self, x: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Return the mean a·x + b·v of the next state."""
        return self.a * x + self.b * velocity

    def noise(self, x: torch.Tensor, x_next: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Return the unit noise that leads from ``x`` to ``x_next``: (x' − a·x − b·v) / s."""
        return (x_next - self.mean(x, velocity)) / self.s

    @property
    def gain(self) -> torch.Tensor:
        """k = b/s: by how many standard deviations of the noise the mean moves per unit of velocity."""
        return self.b / self.s


Kernel = Callable[[torch.Tensor, torch.Tensor], StepCoefficients]
"""``(sigma, sigma_next) -> Step``."""


def ode_kernel() -> Kernel:
    """Return the kernel of a deterministic Euler step along the velocity."""

    def kernel(sigma: torch.Tensor, sigma_next: torch.Tensor) -> StepCoefficients:
        return StepCoefficients(torch.ones_like(sigma), sigma_next - sigma, torch.zeros_like(sigma))

    return kernel


def sde_kernel(
    diffusion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], largest_std: float = float("inf")
) -> Kernel:
    """Return the kernel of the reverse SDE that has the same marginals as the ODE.

    The diffusion coefficient is g = ``diffusion(σ, σ')``. ``largest_std`` caps s = g·√−dt; the capped g also enters
    the drift (LongCat-Video, appendix A.1).
    """

    def kernel(sigma: torch.Tensor, sigma_next: torch.Tensor) -> StepCoefficients:
        dt = sigma_next - sigma
        s = (diffusion(sigma, sigma_next) * (-dt).sqrt()).clamp_max(largest_std)
        half_g2_dt = -0.5 * s.square()
        return StepCoefficients(1 + half_g2_dt / sigma, dt + half_g2_dt * (1 - sigma) / sigma, s)

    return kernel


NEAR_PURE_NOISE = 0.01
"""Share of a step: levels closer than this to σ = 1 are treated as σ = 1 by ``flow_diffusion``."""


def flow_diffusion(eta: float, version: int = 2) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return Flow-GRPO's diffusion coefficient g = η·√(σ/(1−σ)), made finite at σ = 1.

    At σ = 1 the authors' code replaces σ by the schedule's second level σ₂ in the denominator alone, g = η·√(1/(1−σ₂)),
    and so does version 2. Version 1 (FlowPortrait 0.1) replaced it in both places, g = η·√(σ₂/(1−σ₂)): s of the first
    step is √σ₂ times the authors' value, a factor of .913 at six even steps. The replacement is made wherever σ is
    closer to 1 than ``NEAR_PURE_NOISE`` times the step, because UniPC's schedule, which Wan uses, begins at 0.999999.
    """

    def diffusion(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        finite = torch.where(1 - sigma < NEAR_PURE_NOISE * (sigma - sigma_next), sigma_next, sigma)
        return eta * ((finite if version == 1 else sigma) / (1 - finite)).sqrt()

    return diffusion


def flow_sde_kernel(eta: float = 0.7, version: int = 2) -> Kernel:
    """Return Flow-GRPO's kernel (2505.05470)."""
    return sde_kernel(flow_diffusion(eta, version))


def dance_sde_kernel(eta: float = 0.3) -> Kernel:
    """Return DanceGRPO's kernel (2505.07818), in which g = η is constant."""
    return sde_kernel(lambda sigma, _: torch.full_like(sigma, eta))


def longcat_sde_kernel(eta: float = 1.0, largest_std: float = 0.45, version: int = 2) -> Kernel:
    """Return LongCat-Video's kernel (2510.22200): Flow-SDE with s capped at ``largest_std``, in the drift as well."""
    return sde_kernel(flow_diffusion(eta, version), largest_std)


def cps_kernel(eta: float = 0.9) -> Kernel:
    """Return the kernel of coefficients-preserving sampling (2509.05952).

    It replaces part of the predicted noise by fresh noise.
    """
    angle = torch.tensor(eta * torch.pi / 2)

    def kernel(sigma: torch.Tensor, sigma_next: torch.Tensor) -> StepCoefficients:
        predicted = sigma_next * torch.cos(angle)
        return StepCoefficients(
            (1 - sigma_next) + predicted,
            -sigma * (1 - sigma_next) + (1 - sigma) * predicted,
            sigma_next * torch.sin(angle),
        )

    return kernel


KERNELS: dict[str, Callable[[float], Kernel]] = {
    "flow-sde": flow_sde_kernel,
    "dance-sde": dance_sde_kernel,
    "longcat-sde": longcat_sde_kernel,
    "cps": cps_kernel,
}
"""Factories of stochastic kernels by name; each takes its noise strength η."""


VERSION_1_KERNELS: dict[str, Callable[[float], Kernel]] = {
    **KERNELS,
    "flow-sde": partial(flow_sde_kernel, version=1),
    "longcat-sde": partial(longcat_sde_kernel, version=1),
}
"""The same kernels with the first step of FlowPortrait 0.1, for runs that were started with that version."""


def build_kernel(name: str, eta: float, version: int = 2) -> Kernel:
    """Return the stochastic kernel of this name with noise strength ``eta``, as runs of this ``version`` use it."""
    return (VERSION_1_KERNELS if version == 1 else KERNELS)[name](eta)


# --- Likelihood ratio of a recorded step -----------------------------------------------------------------------------
#
# With x' = a·x + b·v_old + s·ε, Δv = v − v_old and k = b/s:
#
#     log r = k·ε·Δv − ½·k²·Δv²
#
# It is computed from Δv and ε instead of as a difference of two log-probabilities, so it is exactly 0 where Δv is 0.


def log_ratio(gain: torch.Tensor, noise: torch.Tensor, delta_v: torch.Tensor) -> torch.Tensor:
    """Return log N(x'; v) − log N(x'; v_old) per element, in float32.

    Args:
        gain: k = b/s of the step.
        noise: the unit noise ε of the recorded step.
        delta_v: v − v_old. All arguments broadcast.
    """
    shift = gain.float() * delta_v.float()
    return shift * noise.float() - 0.5 * shift.square()


def gaussian_kl(gain: torch.Tensor, delta_v: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence ½k²Δv² between the transitions of two velocities, per element."""
    return 0.5 * (gain.float() * delta_v.float()).square()
