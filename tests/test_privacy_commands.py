"""What `python -m deploy.privacy` says and ends with: one sentence with its remedy, and the loader's exit statuses."""

import pytest

from tests.officer import as_superuser, privacy

OFFICER = "privacy_officer_user"


def test_two_persons_are_required_by_yes_and_no_longer_by_no(database):
    required = privacy(database, "require-two-persons", "yes")
    assert required.stdout == "Another officer has to approve each recovery.\n"
    assert privacy(database, "require-two-persons", "no").stdout == "One officer suffices for a recovery.\n"


def test_a_variable_that_is_not_set_switches_no_rule_off(database):
    assert privacy(database, "require-two-persons", "yes").returncode == 0
    done = privacy(database, "require-two-persons", "")
    assert done.returncode == 2
    assert "is not one of 'yes', 'no'" in done.stderr
    assert as_superuser(database, "select two_persons from privacy.settings") == [(True,)]


@pytest.mark.parametrize("user_id", ["", " "])
def test_without_a_person_nobody_is_forgotten_and_the_user_id_is_asked_for(database, user_id):
    done = privacy(database, "forget", "--user-id", user_id, "--reason", "", login=OFFICER)
    assert done.returncode == 2
    assert done.stderr.endswith("Error: Give --user-id (make forget USER_ID=… REASON=…).\n")
