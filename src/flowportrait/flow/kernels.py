"""One step of any sampler is affine-Gaussian, and how likely a recorded step is under another velocity.

One step of any sampler is affine-Gaussian:  x' ~ N(a·x + b·v, s²)  as σ goes to σ' < σ, dt = σ' − σ.

A kernel maps ``(σ, σ')`` to ``(a, b, s)`` and does nothing else; sampling, replay, log-ratios, KL and step weights
are derived from the three numbers elsewhere.

    ODE        1                 dt                              0
    SDE(g)     1 + g²dt/2σ       dt·(1 + g²(1−σ)/2σ)             g·√−dt
    CPS        (1−σ') + c        −σ(1−σ') + (1−σ)·c              σ'·sin(ηπ/2),   c = σ'·cos(ηπ/2)

Sources: Flow-GRPO (2505.05470), DanceGRPO (2505.07818), LongCat-Video (2510.22200), CPS (2509.05952).

How much likelier a new velocity makes a recorded transition, exactly and per element.

With x' = a·x + b·v_old + s·ε, Δv = v − v_old and k = b/s:

    log r = k·ε·Δv − ½·k²·Δv²

Computed from Δv and ε instead of as a difference of two log-probabilities, it is exactly 0 where Δv is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """Coefficients of one transition, each broadcastable to the data."""

    a: torch.Tensor
    b: torch.Tensor
    s: torch.Tensor

    def mean(self, x: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """a·x + b·v."""
        return self.a * x + self.b * velocity

    def noise(self, x: torch.Tensor, x_next: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The unit noise that led from ``x`` to ``x_next``: (x' − a·x − b·v) / s."""
        return (x_next - self.mean(x, velocity)) / self.s

    @property
    def gain(self) -> torch.Tensor:
        """k = b/s: how many noise deviations the mean moves per unit of velocity."""
        return self.b / self.s


Kernel = Callable[[torch.Tensor, torch.Tensor], Step]
"""``(sigma, sigma_next) -> Step``."""


def ode() -> Kernel:
    """Euler's step along the velocity; no noise."""

    def kernel(sigma: torch.Tensor, sigma_next: torch.Tensor) -> Step:
        return Step(torch.ones_like(sigma), sigma_next - sigma, torch.zeros_like(sigma))

    return kernel


def sde(diffusion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], largest_std: float = float("inf")) -> Kernel:
    """The reverse SDE whose marginals are the ODE's, with diffusion coefficient g = ``diffusion(σ, σ')``.

    ``largest_std`` caps s = g·√−dt; the capped g also drives the drift (LongCat-Video, appendix A.1).
    """

    def kernel(sigma: torch.Tensor, sigma_next: torch.Tensor) -> Step:
        dt = sigma_next - sigma
        s = (diffusion(sigma, sigma_next) * (-dt).sqrt()).clamp_max(largest_std)
        half_g2_dt = -0.5 * s.square()
        return Step(1 + half_g2_dt / sigma, dt + half_g2_dt * (1 - sigma) / sigma, s)

    return kernel


NEAR = 0.01


def flow_diffusion(eta: float, version: int = 2) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Flow-GRPO's g = η·√(σ/(1−σ)), which diverges at σ = 1.

    There the authors' code replaces σ by the schedule's second level σ₂ in the denominator alone, g = η·√(1/(1−σ₂)),
    and so does version 2. Version 1 (FlowPortrait 0.1) replaced it in both places, g = η·√(σ₂/(1−σ₂)): the first step's
    s is √σ₂ of the authors', .913 at six even steps. Both hold where σ is nearer to 1 than ``NEAR`` of the step:
    UniPC's schedule, which Wan has, begins at 0.999999.
    """

    def diffusion(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        finite = torch.where(1 - sigma < NEAR * (sigma - sigma_next), sigma_next, sigma)
        return eta * ((finite if version == 1 else sigma) / (1 - finite)).sqrt()

    return diffusion


def flow_sde(eta: float = 0.7, version: int = 2) -> Kernel:
    """Flow-GRPO's kernel."""
    return sde(flow_diffusion(eta, version))


def dance_sde(eta: float = 0.3) -> Kernel:
    """DanceGRPO's constant g = η."""
    return sde(lambda sigma, _: torch.full_like(sigma, eta))


def longcat_sde(eta: float = 1.0, largest_std: float = 0.45, version: int = 2) -> Kernel:
    """Flow-SDE with s capped, the cap entering the drift as well."""
    return sde(flow_diffusion(eta, version), largest_std)


def cps(eta: float = 0.9) -> Kernel:
    """Coefficients-preserving sampling: part of the predicted noise is replaced by fresh noise."""
    angle = torch.tensor(eta * torch.pi / 2)

    def kernel(sigma: torch.Tensor, sigma_next: torch.Tensor) -> Step:
        kept = sigma_next * torch.cos(angle)
        return Step(
            (1 - sigma_next) + kept,
            -sigma * (1 - sigma_next) + (1 - sigma) * kept,
            sigma_next * torch.sin(angle),
        )

    return kernel


KERNELS: dict[str, Callable[[float], Kernel]] = {
    "flow-sde": flow_sde,
    "dance-sde": dance_sde,
    "longcat-sde": longcat_sde,
    "cps": cps,
}
"""Stochastic kernels by name, each from its η."""


VERSION_1_KERNELS: dict[str, Callable[[float], Kernel]] = {
    **KERNELS,
    "flow-sde": partial(flow_sde, version=1),
    "longcat-sde": partial(longcat_sde, version=1),
}
"""The same with the first step of FlowPortrait 0.1, which runs that began with it keep."""


def kernel_named(name: str, eta: float, version: int = 2) -> Kernel:
    """The stochastic kernel of that name, as runs of that ``version`` use it."""
    return (VERSION_1_KERNELS if version == 1 else KERNELS)[name](eta)


def log_ratio(gain: torch.Tensor, noise: torch.Tensor, delta_v: torch.Tensor) -> torch.Tensor:
    """Un-reduced log N(x'; v) − log N(x'; v_old) in float32; all arguments broadcast."""
    shift = gain.float() * delta_v.float()
    return shift * noise.float() - 0.5 * shift.square()


def gaussian_kl(gain: torch.Tensor, delta_v: torch.Tensor) -> torch.Tensor:
    """Un-reduced KL between the transitions of two velocities, ½k²Δv²."""
    return 0.5 * (gain.float() * delta_v.float()).square()
