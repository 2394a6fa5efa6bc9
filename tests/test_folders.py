"""The folders of a project and of its runs, found from wherever a command starts."""

from helpers import folders


def test_the_results_folder_is_the_projects_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("AFTER_UPDATE_RESULTS", raising=False)
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(tmp_path))
    assert folders.results_root() == tmp_path / "results"
    monkeypatch.delenv("AFTER_UPDATE_ROOT")
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert folders.project_root() == tmp_path


def test_a_results_folder_that_is_relative_lies_in_the_project_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("AFTER_UPDATE_ROOT", str(tmp_path))
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", "elsewhere")
    assert folders.results_root() == tmp_path / "elsewhere"


def test_runs_come_with_the_embedded_model_first_then_by_model_and_seed_as_a_number(tmp_path):
    for name in ("big/seed-0", "embedded/seed-10", "embedded/seed-2", "embedded/seed-old", "embedded/notes", "a/seed-1"):
        (tmp_path / name).mkdir(parents=True)
    found = [path.relative_to(tmp_path).as_posix() for path in folders.run_folders(tmp_path)]
    assert found == ["embedded/seed-2", "embedded/seed-10", "a/seed-1", "big/seed-0"]


def test_a_file_that_cannot_be_read_has_no_hash(tmp_path):
    (tmp_path / "file").write_text("a")
    assert (len(folders.file_hash(tmp_path / "file")), folders.file_hash(tmp_path / "none")) == (64, "")
