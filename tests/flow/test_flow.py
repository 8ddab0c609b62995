"""Claims about kernels, solvers and ratios, against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.flow.kernels import (
    KERNELS,
    StepCoefficients,
    build_kernel,
    cps_kernel,
    dance_sde_kernel,
    flow_sde_kernel,
    gaussian_kl,
    log_ratio,
    longcat_sde_kernel,
    ode_kernel,
)
from flowportrait.flow.noise import _USES, NoiseKey, NoiseUse, keyed_noise, mix_seed
from flowportrait.flow.schedules import (
    interpolate,
    iterate_transitions,
    noise_schedule,
    predict_data,
    predict_noise,
    solve_ode,
    target_velocity,
)

levels = st.floats(0.05, 0.95)


def pair(sigma: float, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(sigma, dtype=torch.float64), torch.tensor(sigma * share, dtype=torch.float64)


@pytest.mark.parametrize("name", list(KERNELS))
@given(sigma=levels, share=st.floats(0.1, 0.9))
def test_without_noise_every_kernel_is_an_euler_step(name: str, sigma: float, share: float) -> None:
    step = KERNELS[name](0.0)(*pair(sigma, share))
    euler = ode_kernel()(*pair(sigma, share))
    for got, want in zip(step, euler, strict=True):
        assert float(got) == pytest.approx(float(want), abs=1e-9)


@given(sigma=levels, share=st.floats(0.1, 0.9), eta=st.floats(0.05, 1.0))
def test_flow_sde_is_the_published_step(sigma: float, share: float, eta: float) -> None:
    sigma_, next_ = pair(sigma, share)
    a, b, s = flow_sde_kernel(eta)(sigma_, next_)
    dt = share * sigma - sigma
    g2 = eta**2 * sigma / (1 - sigma)
    assert float(a) == pytest.approx(1 + g2 * dt / (2 * sigma), abs=1e-9)
    assert float(b) == pytest.approx(dt * (1 + g2 * (1 - sigma) / (2 * sigma)), abs=1e-9)
    assert float(s) == pytest.approx(math.sqrt(g2 * -dt), abs=1e-9)


@given(sigma=levels, share=st.floats(0.1, 0.9), eta=st.floats(0.05, 0.95))
def test_cps_mixes_predicted_data_predicted_noise_and_fresh_noise(sigma: float, share: float, eta: float) -> None:
    sigma_, next_ = pair(sigma, share)
    step = cps_kernel(eta)(sigma_, next_)
    x, v = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    data, noise = predict_data(x, v, sigma_), predict_noise(x, v, sigma_)
    fresh = float(next_) * math.sin(eta * math.pi / 2)
    kept = math.sqrt(float(next_) ** 2 - fresh**2)
    assert float(step.mean(x, v)) == pytest.approx(float((1 - next_) * data + kept * noise), abs=1e-6)
    assert float(step.s) == pytest.approx(fresh, abs=1e-6)


def test_longcat_never_exceeds_its_cap_and_puts_the_cap_into_the_drift() -> None:
    sigma, following = torch.tensor(0.97), torch.tensor(0.6)
    step = longcat_sde_kernel(1.0, 0.45)(sigma, following)
    assert float(step.s) == pytest.approx(0.45)
    assert float(step.a) == pytest.approx(1 - 0.45**2 / (2 * 0.97))


def test_flow_sde_starts_at_pure_noise_without_diverging() -> None:
    nearly, exactly = (flow_sde_kernel(0.5)(torch.tensor(start), torch.tensor(0.94)) for start in (0.999999, 1.0))
    assert torch.allclose(torch.stack(nearly), torch.stack(exactly), atol=1e-4)
    step = flow_sde_kernel(0.7)(torch.tensor(1.0), torch.tensor(0.9))
    assert all(torch.isfinite(c) for c in step)


@pytest.mark.parametrize("steps", [2, 6, 10, 25])
@pytest.mark.parametrize("name", ["flow-sde", "longcat-sde"])
def test_the_first_step_is_the_authors_and_version_1_keeps_its_own(name: str, steps: int) -> None:
    """Flow-GRPO's code: std = η·√(σ/(1 − where(σ == 1, σ₂, σ)))·√−dt. In version 1 the first s is √σ₂ of that."""
    sigmas = noise_schedule(steps).double()
    first, second = sigmas[:2]
    authors = 0.3 * torch.sqrt(first / (1 - second)) * torch.sqrt(first - second)
    now, then = (build_kernel(name, 0.3, version)(first, second).s for version in (2, 1))
    assert float(now) == pytest.approx(float(authors))
    assert float(then) == pytest.approx(float(authors * second.sqrt()))
    if steps == 6:
        assert float(then / now) == pytest.approx(0.913, abs=5e-4)
    for later, following in itertools.pairwise(sigmas[1:-1]):
        one, other = (build_kernel(name, 0.3, version)(later, following) for version in (2, 1))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _gaussian_field(mean: float, std: float):  # type: ignore[no-untyped-def]
    """The exact velocity E[ε − x₀ | x_σ] when the data are N(mean, std²)."""

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        centred = x - (1 - sigma) * mean
        return (sigma - (1 - sigma) * std**2) / variance * centred - mean

    return velocity


@pytest.mark.parametrize(
    ("kernel", "keeps"), [(flow_sde_kernel(0.7), True), (dance_sde_kernel(0.3), True), (cps_kernel(0.9), False)]
)
def test_sdes_keep_the_marginal_and_cps_contracts_it(kernel, keeps: bool) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=generator)
    steps = 100
    for transition in iterate_transitions(
        _gaussian_field(1.5, 0.3), x, noise_schedule(steps), kernel, lambda _: torch.randn(20_000, generator=generator)
    ):
        x = transition.x_next
    assert float(x.mean()) == pytest.approx(1.5, abs=0.02)
    if keeps:
        assert float(x.std()) == pytest.approx(0.3, abs=0.012)
    else:
        assert float(x.std()) < 0.25


def test_the_last_step_is_never_stochastic() -> None:
    field = _gaussian_field(0.0, 1.0)
    transitions = list(
        iterate_transitions(field, torch.zeros(3), noise_schedule(4), flow_sde_kernel(), lambda _: torch.ones(3))
    )
    assert float(transitions[-1].step.s) == 0.0
    assert all(float(t.step.s) > 0 for t in transitions[:-1])


def test_the_ode_is_solved_exactly_where_velocity_is_constant_and_to_first_order_elsewhere() -> None:
    x = torch.tensor([0.4, -1.2])
    assert torch.allclose(solve_ode(lambda x, s: torch.full_like(x, 2.0), x, noise_schedule(3)), x - 2.0)
    field = _gaussian_field(1.5, 0.3)
    # The ODE maps N(0, 1) onto N(1.5, 0.3²) monotonically: x ↦ 1.5 + 0.3 x.
    exact = 1.5 + 0.3 * x
    error = {steps: float((solve_ode(field, x, noise_schedule(steps)) - exact).abs().max()) for steps in (50, 100)}
    assert error[50] == pytest.approx(2 * error[100], rel=0.1)


@given(sigma=levels)
def test_path_predictions_invert_interpolation(sigma: float) -> None:
    x0, noise = torch.tensor([1.0, -2.0]), torch.tensor([0.3, 0.9])
    level = torch.tensor(sigma)
    x, v = interpolate(x0, noise, level), target_velocity(x0, noise)
    assert torch.allclose(predict_data(x, v, level), x0, atol=1e-5)
    assert torch.allclose(predict_noise(x, v, level), noise, atol=1e-5)


@given(eta=st.floats(0.1, 1.0), shift=st.floats(-0.5, 0.5))
def test_log_ratio_equals_the_difference_of_gaussian_log_densities(eta: float, shift: float) -> None:
    sigma, following = pair(0.6, 0.7)
    step: StepCoefficients = flow_sde_kernel(eta)(sigma, following)
    x, v_old, noise = (torch.tensor(c, dtype=torch.float64) for c in (0.2, -0.8, 1.1))
    x_next = step.mean(x, v_old) + step.s * noise
    v = v_old + shift

    def log_density(velocity: torch.Tensor) -> torch.Tensor:
        return -(((x_next - step.mean(x, velocity)) / step.s) ** 2) / 2

    want = float(log_density(v) - log_density(v_old))
    assert float(log_ratio(step.gain, noise, v - v_old)) == pytest.approx(want, rel=1e-4, abs=1e-5)
    kl = float((step.gain * shift) ** 2 / 2)
    assert float(gaussian_kl(step.gain, v - v_old)) == pytest.approx(kl, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_is_exactly_one_where_nothing_changed(dtype: torch.dtype) -> None:
    v = torch.randn(64).to(dtype)
    assert torch.equal(log_ratio(torch.tensor(-0.7), torch.randn(64).to(dtype), v - v), torch.zeros(64))


def test_the_expected_ratio_under_the_old_policy_is_one() -> None:
    noise = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    ratio = log_ratio(torch.tensor(0.8), noise, torch.tensor(0.3)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=3e-3)


@given(key=st.lists(st.integers(-5, 2**40), min_size=1, max_size=5))
def test_noise_is_a_function_of_its_key(key: list[int]) -> None:
    assert torch.equal(keyed_noise(8, *key), keyed_noise(8, *key))
    assert mix_seed(*key) != mix_seed(*key[:-1], key[-1] + 1)


SAMPLES, CHUNKS, STEPS = 48 * 24, 40, 25
"""More than any recipe has in an iteration: the authors' 48 groups of 24, 6.4 s, 25 steps."""


def test_no_two_places_of_an_iteration_have_a_number_in_common() -> None:
    """The counters of all places differ, none of their first words is used, and Philox permutes counters."""
    key = NoiseKey(0, 7)
    places = {
        key.counter(use, sample, chunk, step)
        for use in _USES for sample in range(0, SAMPLES, 13) for chunk in range(CHUNKS) for step in range(STEPS)
    }  # fmt: skip
    assert len(places) == len(_USES) * len(range(0, SAMPLES, 13)) * CHUNKS * STEPS
    assert all(position == 0 for position, *_ in places)
    drawn = {
        tuple(key.normal(4, use, sample, chunk, step).tolist())
        for use in _USES for sample in range(96) for chunk in range(6) for step in range(6)
    }  # fmt: skip
    assert len(drawn) == len(_USES) * 96 * 6 * 6


Places = st.tuples(
    st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.sampled_from(_USES), st.integers(0, 2**63 - 1),
    st.integers(0, 2**31), st.integers(0, 2**31),
)  # fmt: skip


@given(Places, Places)
def test_different_places_have_different_keys_or_counters(
    one: tuple[int, int, NoiseUse, int, int, int], other: tuple[int, int, NoiseUse, int, int, int]
) -> None:
    """For every seed, iteration, use, sample (63 bits: those of a tree are hashes), chunk and step."""
    keys = [(place[:2], NoiseKey(*place[:2]).counter(*place[2:])) for place in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)
    same = NoiseKey(*one[:2]).normal(3, *one[2:])
    assert torch.equal(same, NoiseKey(*one[:2]).normal(3, *one[2:]))
    assert torch.equal(same, NoiseKey(*other[:2]).normal(3, *other[2:])) == (one == other)


def test_version_1_gave_two_places_the_same_noise_and_is_kept_as_it_was() -> None:
    old, new = NoiseKey(5, 3, version=1), NoiseKey(5, 3)
    assert torch.equal(old.normal(8, "forward", 4), old.normal(8, "step", 2, 4, 1))
    assert not torch.equal(new.normal(8, "forward", 4), new.normal(8, "step", 2, 4, 1))
    assert torch.equal(old.normal(8, "start", 9, 2), keyed_noise(8, 5, 3, 9, 2, -1))
    # torch's generators read 32 bits of a seed, so that version 1 repeats itself within an iteration of the authors'.
    seeds = [mix_seed(5, 3, sample, chunk, step) & 0xFFFFFFFF
             for sample in range(1152) for chunk in range(18) for step in range(10)]  # fmt: skip
    assert len(set(seeds)) < len(seeds)


def test_keyed_noise_is_standard_normal_and_its_places_are_uncorrelated() -> None:
    draws = torch.stack([NoiseKey(1, i).normal(2000, "step", 3, 1, 4) for i in range(50)])
    assert float(draws.mean()) == pytest.approx(0.0, abs=0.015)
    assert float(draws.std()) == pytest.approx(1.0, abs=0.01)
    correlation = torch.corrcoef(draws) - torch.eye(50)
    assert correlation.abs().max() < 5 / 2000**0.5
    level = NoiseKey(1).uniform(20_000, "level", 2)
    assert level.dtype == draws.dtype == torch.float32
    assert (float(level.min()), float(level.max())) == pytest.approx((0.0, 1.0), abs=1e-3)
    assert set(NoiseKey(1).integers(4, 200, "history").tolist()) == {0, 1, 2, 3}


def test_schedules_run_from_one_to_zero_and_shift_spends_steps_at_high_noise() -> None:
    plain, high = noise_schedule(6), noise_schedule(6, 3.0)
    assert plain[0] == high[0] == 1.0
    assert plain[-1] == high[-1] == 0.0
    assert (high[1:-1] > plain[1:-1]).all()


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_two_step_inversion_is_undone_to_rounding_and_eulers_is_not(steps: int) -> None:
    from flowportrait.flow import guidance as inversion

    weights = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ weights[0]) @ weights[1] * (1 + sigma) + x @ weights[2]

    x0 = torch.randn(4, 6, dtype=torch.float64)
    sigmas = noise_schedule(steps).double()
    states = inversion.invert_two_step(velocity, x0, sigmas)
    back = inversion.sample_two_step(velocity, states[0], states[1], sigmas)
    assert torch.allclose(back, x0, rtol=1e-6, atol=1e-6)
    euler = solve_ode(velocity, inversion.invert_euler(velocity, x0, sigmas)[0], sigmas)
    assert (euler - x0).norm() > 100 * (back - x0).norm()


def test_inverting_a_straight_flow_is_exact_in_every_scheme() -> None:
    from flowportrait.flow import guidance as inversion

    x0, noise = torch.randn(2, 5, dtype=torch.float64)
    sigmas = noise_schedule(7).double()
    for states in (
        inversion.straight_path_states(x0, noise, sigmas),
        inversion.invert_euler(lambda x, s: noise - x0, x0, sigmas),
        inversion.invert_two_step(lambda x, s: noise - x0, x0, sigmas),
    ):
        assert len(states) == 8
        assert torch.allclose(states[0], noise)
        assert torch.allclose(states[-1], x0)
