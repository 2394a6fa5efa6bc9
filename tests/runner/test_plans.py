"""A plan is refused by the name of what is wrong, before anything runs."""

import pytest

from helpers.errors import StudyError
from helpers.runner import plans


def test_models_are_checked_by_name_folder_and_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plans.checked_model("tiny") == "tiny"
    with pytest.raises(StudyError, match="unknown model 'tinny'; did you mean 'tiny'"):
        plans.checked_model("tinny")
    with pytest.raises(StudyError, match="hub model 'owner/name' has no revision"):
        plans.checked_model("owner/name")
    assert plans.checked_model("Owner/Name@abc") == "owner-name-abc"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StudyError, match=r"config\.json"):
        plans.checked_model("folder")
    with pytest.raises(StudyError, match="expected str, got int 7"):
        plans.checked_model(7)
