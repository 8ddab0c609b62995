"""Drawing one portrait: the photo comes back, lips close, the background stays, nothing flickers."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation
from skimage import data

from flowportrait.media.portrait import Portrait
from flowportrait.rendering.dubbing import MouthMemory, redraw_mouth
from flowportrait.rendering.face_regions import (
    EYES,
    INNER_LOWER,
    INNER_UPPER,
    RIGID_LANDMARKS,
    opening_outline,
    outline_mask,
)
from flowportrait.rendering.layers import FarSideLayer
from flowportrait.rendering.mesh import N_FACE, HeadMesh, Rasterizer, face_triangles, rigid_motion
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.mouth import MouthModel
from flowportrait.rendering.mouth_geometry import MouthFrame
from flowportrait.rendering.renderer import Renderer, portrait_identity
from flowportrait.rendering.retouch import MouthWindows


@lru_cache
def astronaut() -> Portrait:
    return Portrait.from_image(data.astronaut())


@lru_cache
def renderer() -> Renderer:
    return Renderer(astronaut())


def draw(landmarks: np.ndarray) -> np.ndarray:
    return next(iter(renderer()(landmarks[None])))


def turned(yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    points = astronaut().landmarks.astype(np.float64)
    centre = points.mean(0) + np.array([0, 40, 90])
    turn = Rotation.from_euler("yxz", [yaw, pitch, roll], degrees=True).as_matrix()
    return (points - centre) @ turn.T + centre


def lips(gap: float) -> np.ndarray:
    """The astronaut with her inner lips ``gap`` times as far apart."""
    points = astronaut().landmarks.astype(np.float64)
    missing = (points[INNER_LOWER] - points[INNER_UPPER]) * (1 - gap)
    points[INNER_UPPER[1:-1]] += 0.4 * missing[1:-1]
    points[INNER_LOWER[1:-1]] -= 0.6 * missing[1:-1]
    return points


def closed_mouth() -> Portrait:
    return dataclasses.replace(astronaut(), landmarks=lips(0.0).astype(np.float32))


def test_the_portraits_own_landmarks_give_the_photo_back() -> None:
    difference = np.abs(draw(astronaut().landmarks).astype(int) - astronaut().crop)
    assert difference.mean() < 0.2
    assert np.percentile(difference, 99.5) <= 3


def test_the_frame_border_never_moves_where_the_photo_goes_on() -> None:
    below = astronaut().to_crop - np.array([[0, 0, 0], [0, 0, 50]])
    frame = Renderer(dataclasses.replace(astronaut(), to_crop=below)).draw(turned(yaw=10, pitch=5, roll=5))
    for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        assert np.abs(frame[side].astype(int) - astronaut().crop[side]).max() <= 1


def test_hair_that_the_photo_cuts_off_leaves_it_with_a_rising_head_and_stays_with_a_sinking_one() -> None:
    portrait = Portrait.from_image(np.ascontiguousarray(data.astronaut()[24:]))
    renderer, crop = Renderer(portrait, retouch=False), portrait.crop.astype(int)
    raised, sunk = (renderer.draw(portrait.landmarks + np.array([0, y, 0], np.float32)).astype(int) for y in (-14, 14))
    hair = slice(220, 280)
    assert np.abs(raised[:40, hair] - crop[14:54, hair]).mean() < 5
    assert np.abs(raised[:40, hair] - crop[:40, hair]).mean() > 10
    assert np.abs(sunk[0, hair] - crop[0, hair]).mean() < 2
    assert np.abs(sunk[60:100, hair] - crop[46:86, hair]).mean() < 5


def test_the_background_stays_while_the_head_turns() -> None:
    frame, crop = draw(turned(yaw=10)), astronaut().crop
    corner = np.s_[:150, :35]
    assert np.abs(frame[corner].astype(int) - crop[corner]).max() <= 1
    assert np.abs(frame[200:330, 180:330].astype(int) - crop[200:330, 180:330]).mean() > 5


def test_closed_lips_hide_a_photographed_smile() -> None:
    points = astronaut().landmarks.astype(np.float64)
    inside = outline_mask((512, 512), opening_outline(points[INNER_UPPER, :2], points[INNER_LOWER, :2])) > 0.9

    def not_red(frame: np.ndarray) -> float:
        """Share of pixels where the smile was whose colour is a tooth's and no lip's."""
        return float((cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)[inside][:, 1] < 134).mean())

    assert not_red(draw(lips(1.0))) > 0.4
    assert not_red(draw(lips(0.0))) == 0.0


def test_a_blink_covers_the_iris_with_skin() -> None:
    points = astronaut().landmarks.astype(np.float64)
    for upper, lower, _ in EYES:
        points[upper[1:-1]] = points[lower[1:-1]]
    frame = draw(points)
    for upper, lower, iris in EYES:
        x, y = np.round(astronaut().landmarks[iris, :2]).astype(int)
        lid = (astronaut().landmarks[upper[4], :2] + astronaut().landmarks[lower[4], :2]) / 2
        before = astronaut().crop[y - 3 : y + 3, x - 3 : x + 3].mean()
        after = frame[int(lid[1]) - 3 : int(lid[1]) + 1, x - 3 : x + 3].mean()
        assert after > before + 30


def test_gaze_moves_the_iris_inside_still_lids() -> None:
    points = astronaut().landmarks.astype(np.float64)
    points[468:, 0] += 6
    moved, crop = draw(points), astronaut().crop
    upper, lower, iris = EYES[0]
    outline = opening_outline(astronaut().landmarks[upper, :2], astronaut().landmarks[lower, :2])
    outside = outline_mask((512, 512), outline, 3.0) < 0.01
    box = np.s_[int(outline[:, 1].min()) - 20 : int(outline[:, 1].max()) + 20]
    assert np.abs(moved[box].astype(int) - crop[box])[outside[box]][:, :].mean() < 2

    def darkest(frame: np.ndarray) -> float:
        x, y = np.round(astronaut().landmarks[iris, :2]).astype(int)
        row = 255.0 - frame[y - 2 : y + 3, x - 18 : x + 19].mean((0, 2))
        weight = np.maximum(row - np.median(row), 0)
        return float((weight * np.arange(len(row))).sum() / weight.sum())

    assert darkest(moved) > darkest(crop) + 2


def test_small_motion_makes_small_changes() -> None:
    reference = draw(lips(1.3)).astype(int)
    rng = np.random.default_rng(0)
    jittered = lips(1.3) + rng.normal(0, 0.05, (478, 3))
    assert np.abs(draw(jittered).astype(int) - reference).mean() < 0.5


def test_a_small_renderer_takes_the_same_landmarks() -> None:
    small = next(iter(Renderer(astronaut(), size=128)(turned(yaw=6)[None])))
    assert small.shape == (128, 128, 3)
    large = cv2.resize(draw(turned(yaw=6)), (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - large).mean() < 3


@given(st.floats(-40, 40), st.floats(-40, 40), st.floats(-40, 40), st.floats(0.5, 2))
@settings(max_examples=30, deadline=None)
def test_rigid_motion_is_recovered_exactly(yaw: float, pitch: float, roll: float, scale: float) -> None:
    source = np.random.default_rng(0).normal(0, 50, (478, 3))
    turn = scale * Rotation.from_euler("yxz", [yaw, pitch, roll], degrees=True).as_matrix()
    matrix, shift = rigid_motion(source, source @ turn.T + [3, 4, 5])
    np.testing.assert_allclose(matrix, turn, atol=1e-8)
    np.testing.assert_allclose(shift, [3, 4, 5], atol=1e-6)


@given(arrays(np.float64, (4, 2), elements=st.floats(-3, 3)))
@settings(max_examples=20, deadline=None)
def test_the_rasterizer_inverts_an_affine_map(offsets: np.ndarray) -> None:
    corners = np.array([[0.0, 0], [63, 0], [0, 63], [63, 63]])
    affine = np.array([[1.1, 0.05], [-0.04, 0.95]])
    moved = np.column_stack([(corners - 32) @ affine.T + 32 + offsets[0], np.zeros(4)])
    source = Rasterizer(np.array([[0, 1, 2], [1, 3, 2]]), corners, 64)(moved)
    ys, xs = np.mgrid[20:44, 20:44]
    expected = (np.stack([xs, ys], -1) - 32 - offsets[0]) @ np.linalg.inv(affine).T + 32
    np.testing.assert_allclose(source[20:44, 20:44], expected, atol=0.02)


def test_the_face_is_one_closed_sheet() -> None:
    triangles = face_triangles()
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    assert count.max() == 2
    assert (count == 1).sum() == 36


def test_hair_moves_with_the_skull_and_the_jaw_alone_moves_no_hair() -> None:
    mesh = HeadMesh(astronaut().crop, astronaut().landmarks)
    points = astronaut().landmarks.astype(np.float64)
    rest = mesh(points)
    np.testing.assert_allclose(rest[:, :2], mesh.source, atol=1e-6)
    jaw = points.copy()
    jaw[[i for i in range(478) if i not in RIGID_LANDMARKS], 1] += (
        8 * (points[:, 1] > points[2, 1] + 20)[[i for i in range(478) if i not in RIGID_LANDMARKS]]
    )
    hair = (mesh.source[:, 1] < points[10, 1] - 10) & (np.arange(len(mesh.source)) >= 468)
    assert np.abs(mesh(jaw) - rest)[hair][:, :2].max() < 0.5
    lifted = mesh(points - [0, 6, 0])[hair & (np.abs(mesh.source[:, 0] - points[10, 0]) < 30)]
    assert np.median(lifted[:, 1] - rest[hair & (np.abs(mesh.source[:, 0] - points[10, 0]) < 30)][:, 1]) < -3


def test_mouth_coordinates_do_not_depend_on_the_head() -> None:
    frame = MouthFrame(astronaut().landmarks)
    points = lips(1.5)
    still = frame.opening(points)
    turn = 1.2 * Rotation.from_euler("z", 12, degrees=True).as_matrix()
    moved = frame.opening(points @ turn.T + [7, -3, 0])
    probe = still.outline.mean(0)
    there = probe @ turn[:2, :2].T + [7, -3]
    np.testing.assert_allclose(moved.coordinates(there), still.coordinates(probe), atol=2e-3)


def test_the_mouth_model_is_dark_inside_and_brighter_on_teeth() -> None:
    deep = np.array([[0.0, 0.06, 0.0, 0.06, 0.06]], np.float32)
    cavity, upper, lower = MouthModel.shipped().layers(deep, (0.12, 0.4)).reshape(3, 3)
    assert cavity.mean() < 0.5
    assert upper.mean() > cavity.mean()
    assert lower.mean() > cavity.mean()


def louder(windows: MouthWindows) -> tuple[torch.Tensor, torch.Tensor]:
    """A network that brightens everything."""
    return torch.zeros_like(windows.base[:, :2]), torch.full_like(windows.base, 0.3)


def test_dubbing_retouches_what_it_moves() -> None:
    photo, points = astronaut().crop, astronaut().landmarks.astype(np.float64)
    plain, bright = (
        redraw_mouth(photo, points, lips(0.0), MouthMemory.from_video([photo], points[None], network))
        for network in (None, louder)
    )
    chin = points[199, :2].round().astype(int)
    assert (bright[chin[1], chin[0]].astype(int) - plain[chin[1], chin[0]]).mean() > 20


def test_dubbing_changes_only_the_lower_face() -> None:
    photo, points = astronaut().crop, astronaut().landmarks.astype(np.float64)
    memory = MouthMemory.from_video([photo], points[None], louder)
    same = redraw_mouth(photo, points, points, memory)
    changed = redraw_mouth(photo, points, lips(0.0), memory)
    eyes = int(points[[33, 263], 1].mean())
    assert (changed[: eyes + 10] == photo[: eyes + 10]).all()
    assert (changed[:, :60] == photo[:, :60]).all()
    assert np.abs(changed.astype(int) - photo).max() > 40
    assert np.abs(same.astype(int) - photo).mean() < 0.6


@pytest.mark.parametrize("size", [100, 257])
def test_any_frame_size_can_be_drawn(size: int) -> None:
    frame = next(iter(Renderer(astronaut(), size=size)(turned(roll=3)[None])))
    assert frame.shape == (size, size, 3)


def half_profile() -> Portrait:
    """The astronaut as she is drawn turned by 30 degrees, taken for a photo."""
    points = turned(yaw=30).astype(np.float32)
    return dataclasses.replace(astronaut(), crop=draw(points), landmarks=points)


def test_the_far_side_of_a_half_profile_is_the_near_sides_mirror_image() -> None:
    portrait = half_profile()
    mesh = HeadMesh(portrait.crop, portrait.landmarks)
    assert not FarSideLayer(HeadMesh(astronaut().crop, astronaut().landmarks), astronaut().crop).needed
    side = FarSideLayer(mesh, portrait.crop)
    assert side.needed
    vertices = mesh(astronaut().landmarks.astype(np.float64))
    filled = np.zeros_like(portrait.crop)
    side.draw(filled, vertices)
    nose = astronaut().landmarks[1, 0]
    columns = np.flatnonzero(filled.any((0, 2)))
    assert len(columns) > 10
    assert columns.min() > nose or columns.max() < nose


def test_a_far_side_in_shadow_is_filled_in_shadow() -> None:
    portrait = half_profile()
    mesh = HeadMesh(portrait.crop, portrait.landmarks)
    nose, near = portrait.landmarks[1, 0], portrait.landmarks[[127, 356], 0]
    far = np.sign(near[np.abs(near - nose).argmin()] - nose)
    shade = 1 - 0.5 / (1 + np.exp(-far * (np.arange(512) - nose) / 8))
    shadowed = np.round(portrait.crop * shade[:, None]).astype(np.uint8)
    vertices = mesh(astronaut().landmarks.astype(np.float64))
    light, dark = np.zeros_like(portrait.crop), np.zeros_like(portrait.crop)
    FarSideLayer(mesh, portrait.crop).draw(light, vertices)
    side = FarSideLayer(mesh, shadowed)
    side.draw(dark, vertices)
    assert side.needed
    inside = light.min(2) > 60
    assert np.median(dark[inside] / light[inside]) == pytest.approx(0.5, abs=0.08)


def test_a_face_unlike_any_humans_keeps_its_shape_at_rest() -> None:
    basis, person = MotionBasis.load(), closed_mouth()
    strange = person.blendshapes.copy()
    strange[[23, 33, 35, 38, 40, 44, 46]] = 1.0
    odd = portrait_identity(basis, dataclasses.replace(person, blendshapes=strange))
    taken_off = basis.encode(person.landmarks[None], strange[None], smooth=False)[1]
    own = odd.pose.remove(torch.as_tensor(person.landmarks[None]))[0]
    assert (odd.neutral - own).norm(dim=1).mean() < 0.5 * (taken_off.neutral - own).norm(dim=1).mean()
    calm = dataclasses.replace(person, blendshapes=0.1 * person.blendshapes)
    usual = basis.encode(calm.landmarks[None], calm.blendshapes[None], smooth=False)[1]
    assert torch.equal(portrait_identity(basis, calm).neutral, usual.neutral)


def test_frames_drawn_at_once_are_the_frames_drawn_one_by_one() -> None:
    poses = np.stack([turned(yaw=angle) for angle in (-6, 0, 6)])
    alone = list(Renderer(astronaut(), size=128, workers=1)(poses))
    together = list(Renderer(astronaut(), size=128, workers=3)(poses))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_a_head_that_leans_far_to_the_side_covers_what_is_behind_it() -> None:
    portrait = astronaut()
    mesh = HeadMesh(portrait.crop, portrait.landmarks)
    lean = np.array([-0.09 * portrait.crop.shape[0], 0, 0])
    seen = Rasterizer(mesh.triangles, mesh.source, portrait.crop.shape[0])(mesh(portrait.landmarks + lean))
    outside = mesh.source[N_FACE:]
    hair = outside[(mesh._weight > 0.99) & (outside[:, 1] < portrait.landmarks[:, 1].mean())]
    at = np.round(hair + lean[:2]).astype(int)
    shown = seen[at[:, 1], at[:, 0]]
    assert len(hair) > 50
    assert np.linalg.norm(shown - hair, axis=1).max() < 0.03 * portrait.crop.shape[0]


@pytest.mark.parametrize("yaw", [0.0, 6.0, 14.0])
def test_a_coarser_mesh_around_the_face_shows_the_same_places(yaw: float) -> None:
    portrait = astronaut()
    size = portrait.crop.shape[0]
    mesh = HeadMesh(portrait.crop, portrait.landmarks)
    fine = len(face_triangles())
    whole, coarse = (Rasterizer(mesh.triangles, mesh.source, size, fine=count) for count in (None, fine))
    vertices = mesh(turned(yaw=yaw))
    distance = np.linalg.norm(whole(vertices) - coarse(vertices), axis=-1)
    # Only at edges where one part covers another does the map differ, and never inside the face.
    assert np.mean(distance > 0.25) < 0.02
    hull = cv2.convexHull(vertices[:N_FACE, :2].astype(np.float32))
    face = cv2.fillConvexPoly(np.zeros((size, size), np.uint8), np.round(hull).astype(np.int32), 1)
    inside = cv2.erode(face, np.ones((25, 25), np.uint8)) > 0
    assert distance[inside].max() < 0.01
