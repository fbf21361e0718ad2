"""What a start leaves out so that all else is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstream_cli.errors import CommandError
from pinstream_cli.triton.arguments import without
from pinstream_cli.triton.fallback import Fallback, Views
from pinstream_cli.triton.loads import LoadFailed, Version
from tests.unit.cli.test_triton_loads import LOADED, ONE, TWO, after, loading


def test_options_are_found_as_tritonserver_finds_them() -> None:
    given = ["--load-model=a", "--log-verbose", "1", "--load-model", "b", "--load-m", "c", "--http-port=1"]
    assert without("--load-model", given) == ["--log-verbose", "1", "--http-port=1"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in ("classifier/1", "classifier/2", "other/1"):
        (tmp_path / "repository" / version).mkdir(parents=True)
    (tmp_path / "repository" / "classifier" / "config.pbtxt").touch()
    return tmp_path / "repository"


def test_a_start_leaves_out_what_has_an_older_version_and_after_a_life_whole_models(repository: Path) -> None:
    fallback = Fallback([repository], ["--log-verbose=1"])
    assert not fallback.learn(CommandError("the port is taken"), was_ready=False)
    assert not fallback.learn(LoadFailed({Version("other", 1): "broken"}), was_ready=False)
    assert fallback.arguments() == ["--log-verbose=1"]
    assert fallback.learn(LoadFailed({TWO: "broken"}), was_ready=False)
    assert fallback.arguments() == ["--log-verbose=1", "--model-control-mode=poll"]
    assert not fallback.learn(LoadFailed({ONE: "broken", TWO: "broken"}), was_ready=True)
    assert fallback.arguments() == ["--log-verbose=1", "--exit-on-error=false", "--model-control-mode=poll"]
    assert fallback.lacking(after(loading(ONE), LOADED), []) == [
        "version 2 of model 'classifier', of which another one is served: broken",
        "model 'other': Triton's reason is in its log, above",
    ]
    with pytest.raises(LoadFailed, match="classifier, other"):
        fallback.lacking(after(), [])
    with pytest.raises(LoadFailed, match="detector"):
        fallback.lacking(after(loading(ONE), LOADED), ["detector"])
    fallback.remember(after(loading(TWO), LOADED))
    assert fallback.arguments() == ["--log-verbose=1"]


@pytest.mark.parametrize(
    ("policy", "failed", "hidden"),
    [
        ("all { }", [ONE], [ONE]),
        ("all { }", [ONE, TWO], []),
        ("latest { num_versions: 2 }", [ONE], [ONE]),
        ("specific { versions: [ 1, 2 ] }", [TWO], [TWO]),
        # Without the one that it names, a start would fail for another reason, and with that one's hidden.
        ("specific { versions: [ 2 ] }", [TWO], []),
    ],
)
def test_a_start_leaves_out_what_the_version_policy_takes_others_than(
    repository: Path, policy: str, failed: list[Version], hidden: list[Version]
) -> None:
    (repository / "classifier" / "config.pbtxt").write_text(f"version_policy {{ {policy} }}")
    fallback = Fallback([repository])
    assert fallback.learn(LoadFailed(dict.fromkeys(failed, "broken")), was_ready=False) == bool(hidden)
    assert list(fallback.hidden) == hidden


def test_a_start_loads_what_was_loaded_over_the_api(repository: Path) -> None:
    given = ["--model-control-mode=explicit", "--load-model=other"]
    fallback = Fallback([repository], given)
    assert fallback.arguments() == given
    fallback.remember(after(loading(ONE), LOADED))
    assert fallback.arguments() == ["--model-control-mode=explicit", "--load-model=classifier"]
    fallback.remember(after())
    assert fallback.arguments() == ["--model-control-mode=explicit"]
    fallback.learn(LoadFailed({}, "none"), was_ready=True)
    assert fallback.lacking(after(), []) == [], "nothing was loaded, so nothing is lacking"


OTHER = Version("other", 1)
BOTH = [loading(ONE), LOADED, loading(OTHER), LOADED.replace("classifier", "other")]
AWAY = "model 'other': its directory is not there any more; put it back"


def test_a_model_whose_directory_is_away_is_told_and_looked_for(repository: Path, tmp_path: Path) -> None:
    fallback = Fallback([repository])
    assert fallback.lacking(after(*BOTH), []) == []
    fallback.remember(after(*BOTH))
    (repository / "other").rename(tmp_path / "away")
    only_one = after(loading(ONE), LOADED)
    for _ in range(2):
        assert fallback.arguments() == ["--model-control-mode=poll"]
        assert fallback.lacking(only_one, []) == [AWAY]
        fallback.remember(only_one)
    with pytest.raises(LoadFailed, match=f"Triton could not load classifier, other; {AWAY}"):
        fallback.lacking(after(), [])
    (tmp_path / "away").rename(repository / "other")
    assert fallback.arguments() == []
    assert fallback.lacking(after(*BOTH), []) == []


def test_of_what_is_no_repositorys_or_told_apart_no_directory_is_missed(repository: Path, tmp_path: Path) -> None:
    fallback = Fallback([repository])
    (repository / "other").rename(tmp_path / "away")
    (repository / "other").symlink_to(tmp_path / "away")
    detector = loading(Version("detector", 1)), LOADED.replace("classifier", "detector")
    fallback.lacking(after(*BOTH, *detector), ["detector"])
    fallback.remember(after(*BOTH, *detector))
    (tmp_path / "away").rename(tmp_path / "further away")
    assert fallback.arguments() == [], "the link that leads nowhere is told apart"


def test_what_is_taken_away_while_triton_looks_for_changes_is_not_missed_for_good(repository: Path) -> None:
    fallback = Fallback([repository], ["--model-control-mode=poll"])
    fallback.remember(after(*BOTH))
    (repository / "other" / "1").rmdir()
    (repository / "other").rmdir()
    assert fallback.lacking(after(loading(ONE), LOADED), []) == [AWAY], "Triton had not seen it"
    fallback.remember(after(loading(ONE), LOADED))
    assert fallback.lacking(after(loading(ONE), LOADED), []) == []


def test_a_view_hides_a_version_until_it_is_opened(repository: Path, tmp_path: Path) -> None:
    views = Views(tmp_path / "views", [repository, tmp_path], [TWO])
    (view, other) = views.paths
    assert other == tmp_path
    assert sorted(str(path.relative_to(view)) for path in view.glob("*/*")) == [
        "classifier/1",
        "classifier/config.pbtxt",
        "other/1",
    ]
    assert views.reword(f"{view}/classifier/1/a: {view}/b") == f"{repository}/classifier/1/a: {repository}/b"
    views.open()
    assert (view / "classifier" / "2").exists()
    assert view.resolve() == repository


def test_a_view_has_no_link_that_leads_nowhere_opened_or_not(repository: Path, tmp_path: Path) -> None:
    (repository / "dead").symlink_to("nowhere")
    (repository / "linked").symlink_to(repository / "other")
    views = Views(tmp_path / "views", [repository], [])
    assert views.left_out == [
        f"{repository}/dead, a link that leads nowhere; put back what it names, or remove it, and start serve again"
    ]
    (view,) = views.paths
    assert sorted(path.name for path in view.iterdir()) == ["classifier", "linked", "other"]
    (repository / "late").mkdir()
    views.open()
    assert sorted(path.name for path in view.iterdir()) == ["classifier", "late", "linked", "other"]
    (repository / "dead").unlink()
    assert Views(tmp_path / "other views", [repository], []).paths == [repository]
